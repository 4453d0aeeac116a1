"""Hosts whose VM processes reach fault points (src/engine/fault.h) that a test sets while they run."""
from hosts import BUILD, Hosts, introduce, wait_until

# Where a migration can be held, in the order of the protocol: name, side, fault point.
INIT = ("Init", "destination", "destination-before-welcome")
COPY = ("Copy", "source", "source-after-round")
PAUSING = ("I/O Quiesce begins", "source", "source-before-pause")
QUIESCE = ("I/O Quiesce", "source", "source-before-quiesce")
FROZEN = ("Frozen", "source", "source-before-last-pages")
RESTORE = ("restoring", "destination", "destination-before-load")
RELEASED = ("released", "source", "source-after-release")
GO = ("GO", "destination", "destination-before-acquire")
STARTED = ("started", "destination", "destination-before-resume")
RUNS_THERE = ("runs there", "destination", "destination-before-running")

# The guest executes instructions; it stands still, and no state of it is on its way yet.
GUEST_RUNS = [INIT, COPY, PAUSING]
GUEST_STANDS = [QUIESCE, FROZEN]
BEFORE_RELEASE = [*GUEST_RUNS, *GUEST_STANDS, RESTORE]
BEFORE_GO = [*BEFORE_RELEASE, RELEASED]
AFTER_GO = [GO, STARTED, RUNS_THERE]
PHASES = [*BEFORE_GO, *AFTER_GO]


def phase_name(phase):
    return phase[0] if isinstance(phase, tuple) else str(phase)


class FaultyHosts(Hosts):
    def __init__(self):
        super().__init__(vm_program=BUILD / "ferry-vm")

    def new(self, name, *options):
        host = super().new(name, *options)
        host.fault_file = self.directory / f"{name}.fault"
        host.environment["FERRY_FAULT"] = f"@{host.fault_file}"
        return host

    def pair(self, *options):
        """A side that is held is silent: on a busy machine for longer than the default peer timeout."""
        a, b = (self.start(name, "--lock-wait", "3", "--peer-timeout", "60", *options) for name in "ab")
        introduce(a, b)
        return a, b

    def set_fault(self, host, text):
        new = host.fault_file.with_suffix(".new")
        new.write_text(text)
        new.rename(host.fault_file)

    def hold(self, phase, source, destination):
        """Migrations of VMs from SOURCE to DESTINATION will wait in PHASE until release()."""
        side = source if phase[1] == "source" else destination
        side.fault_file.with_name(side.fault_file.name + ".reached").unlink(missing_ok=True)
        self.set_fault(side, f"{phase[2]}:wait")
        return side

    def wait_held(self, side):
        reached = side.fault_file.with_name(side.fault_file.name + ".reached")
        wait_until(reached.exists, "the migration to get that far")

    def release(self, side):
        self.set_fault(side, "")

    def start_held(self, phase, name, source, destination, **options):
        """(migration, side): a migration that stands in PHASE."""
        side = self.hold(phase, source, destination)
        migration = source.migrate(name, destination, **options)
        self.wait_held(side)
        return migration, side
