"""text_to_c.py FILE NAME OUT: a C source that has the text of FILE as the constant NAME."""

import json
import pathlib
import sys

source, name, out = sys.argv[1:]
lines = [f"    {json.dumps(line)}" for line in pathlib.Path(source).read_text(encoding="ascii").splitlines(keepends=True)]
pathlib.Path(out).write_text(f"extern const char {name}[];\nconst char {name}[] =\n" + "\n".join(lines) + ";\n")
