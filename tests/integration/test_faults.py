"""A sample of the fault matrix (scripts/run-faults has all of it), with a fixed seed."""
import pathlib
import sys

import pytest

from hosts import BUILD

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "faults"))

import matrix  # noqa: E402

SAMPLE = 10
UPGRADE_SAMPLE = 4
SEED = 20

pytestmark = pytest.mark.skipif(not (BUILD / "guest" / "riscv64" / "kernel").exists(),
                                reason="needs the Linux guest (make guests)")


def test_sample_of_faults_leaves_one_copy_unharmed():
    done = matrix.run(SAMPLE, SEED)
    print(matrix.table(done))
    wrong = [f"{case.name}: {case.wrong}" for case in done if case.wrong]
    assert len(done) == SAMPLE and not wrong, "\n".join(wrong)


def test_sample_of_faults_in_an_upgrade_leaves_one_process_unharmed():
    done = matrix.run(UPGRADE_SAMPLE, SEED, upgrade=True)
    print(matrix.table(done, upgrade=True))
    wrong = [f"{case.name}: {case.wrong}" for case in done if case.wrong]
    assert len(done) == UPGRADE_SAMPLE and not wrong, "\n".join(wrong)
