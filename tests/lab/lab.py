"""The lab: a machine in QEMU's software CPU, which emulates AMD's SVM, so that the Linux in it has a genuine /dev/kvm.

    with Lab(directory) as lab:
        lab.run("ferryd ... &")
        lab.run("ferry --host /tmp/a list --json")      # what it printed; LabError unless it succeeds
        lab.share                                       # a directory that both sides see, there as /share

The outer machine's kernel, modules and busybox are Debian's (guests/fetch lab); Ferry's programs and the libraries they
need are those of the machine that runs the test.
"""
import itertools
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
APPLETS = "sh mount insmod mkdir ip unshare nsenter sleep stty readlink cat ls kill ps head tail grep date rm dmesg " \
          "truncate touch free uptime true timeout wc".split()


class LabError(Exception):
    pass


def fetched(kind):
    out = subprocess.run([ROOT / "guests" / "fetch", kind], check=True, stdout=subprocess.PIPE, text=True).stdout
    return pathlib.Path(out.strip())


def libraries(program):
    """What the dynamic linker would load."""
    out = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", out)]


def make_initramfs(build, to):
    """The outer machine's root: busybox, modules in the order of their loading, Ferry, the inner guest."""
    parts = fetched("lab")
    root = to.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "modules", "proc", "sys", "dev", "tmp", "guest"):
        (root / name).mkdir(parents=True)
    shutil.copy(HERE / "init", root / "init")
    shutil.copy(parts / "busybox", root / "bin")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    shutil.copy(parts / "modules.order", root / "modules" / "order")
    for module in (parts / "modules").glob("*.ko"):
        shutil.copy(module, root / "modules")
    programs = [build / name for name in ("ferry", "ferryd", "ferry-vm", "tests/unit/machine/test_machine_kvm")]
    for program in programs:
        shutil.copy(program, root / "bin")
        for library in libraries(program):
            copy = root / library.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    for name in ("kernel", "initrd"):
        shutil.copy(build / "guest" / "x86_64" / name, root / "guest")
    shutil.copy(build / "guest" / ".obj" / "linux" / "x86_64" / "ferry-work", root / "bin")
    with open(to, "wb") as archive:
        names = subprocess.run(["find", ".", "-mindepth", "1", "-printf", "%P\n"], cwd=root, check=True,
                               capture_output=True).stdout
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=names, stdout=archive,
                       check=True)
    shutil.rmtree(root)
    return parts / "kernel"


class Lab:
    def __init__(self, directory, build, memory=2560, cpus=2, qemu=("qemu-system-x86_64",)):
        self.directory = pathlib.Path(directory)
        self.build = pathlib.Path(build)
        self.share = self.directory / "share"
        self.memory, self.cpus, self.qemu = memory, cpus, qemu
        self.numbers = itertools.count(1)
        self.process = self.lines = self.line = None

    def __enter__(self):
        self.share.mkdir(parents=True, exist_ok=True)
        kernel = make_initramfs(self.build, self.directory / "initrd")
        path = self.directory / "commands.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(60)
            self.process = subprocess.Popen([
                *self.qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(self.cpus), "-m", str(self.memory),
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-kernel", str(kernel), "-initrd", str(self.directory / "initrd"),
                "-append", "console=ttyS0 quiet panic=-1",
                "-serial", f"file:{self.directory / 'console.log'}", "-serial", f"unix:{path}",
                "-virtfs", f"local,path={self.share},mount_tag=share,security_model=none"])
            self.line, _ = listener.accept()
        self.lines = self.line.makefile("r")
        try:
            self._answer(0, 300)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *_):
        if self.line:
            self.line.close()
        if self.process:
            self.process.kill()
            self.process.wait()

    def _answer(self, number, timeout):
        self.line.settimeout(timeout)
        while True:
            try:
                line = self.lines.readline()
            except TimeoutError as error:
                raise LabError(f"the outer machine did not answer in {timeout} s") from error
            if not line:
                raise LabError("the outer machine ended:\n" + (self.directory / "console.log").read_text(errors="replace")[-3000:])
            words = line.split()
            if len(words) == 2 and words[0] == str(number):
                return int(words[1])

    def run(self, command, timeout=120, check=True):
        """Runs one line of shell in the outer machine; returns what it printed."""
        number = next(self.numbers)
        self.line.sendall(f"{number} {command}\n".encode())
        status = self._answer(number, timeout)
        said = (self.share / f"{number}.out").read_text(errors="replace")
        if check and status != 0:
            raise LabError(f"{command}: status {status}\n{said}")
        return said


def qemu_command():
    """QEMU from Debian's backports: in bookworm's own, the emulated SVM lets XSETBV pass the hypervisor, so that guests
    have no AVX."""
    subprocess.run([ROOT / "bench" / "fetch-qemu"], check=True, stdout=subprocess.DEVNULL)
    sys.path.insert(0, str(ROOT / "bench"))
    import qemu
    return qemu.command("qemu-system-x86_64")


class LabHost:
    """One ferryd in the lab. ADDRESS is that of a network which the lab's init made, by default for a host of this name."""

    def __init__(self, lab, name, address, network=None, port=7300):
        self.lab, self.name, self.network = lab, name, network or name
        self.address = f"{address}:{port}"
        self.state_dir = f"/tmp/{name}"

    def inside(self, command):
        """COMMAND, in this host's network."""
        return f"nsenter -t $(cat /run/{self.network}.pid) -n {command}"

    def start(self, options=""):
        log = f"/share/ferryd-{self.name}.log"
        self.lab.run(self.inside(f"ferryd --state-dir {self.state_dir} --name {self.name} --insecure --listen {self.address} "
                                 f"--peer-timeout 60 --vm-timeout 30 {options}") + f" >{log} 2>&1 &")
        self.lab.run(f"until grep -q 'is ready' {log}; do sleep 0.2; done", 120)

    def ferry(self, words, timeout=300):
        return self.lab.run(f"ferry --host {self.state_dir} --host-timeout 60s {words}", timeout)

    def ask(self, words, timeout=300):
        return json.loads(self.ferry(words + " --json", timeout))

    def console(self, vm):
        return self.ferry(f"logs {vm}").replace("\r", "")
