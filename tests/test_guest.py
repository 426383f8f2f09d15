"""The guest on the real /dev/kvm: its assembling, its log, its faults, and that it always ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.apic import ApicMode, DeliveryMode, Message, Register
from helpers.apic.topology import Topology
from helpers.cache import cache_directory
from helpers.guest import GuestError, Machine, assemble, layout, running
from helpers.guest.assemble import AssemblyError
from helpers.kvm import KvmError, System, abi

EFER = 0xC0000080
KERNEL_GS_BASE = 0xC0000102
IA32_APIC_BASE = 0x1B

# --- assembling -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_directory()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of probe.S that can be changed."""
    copy = tmp_path / "probe.S"
    copy.write_bytes(assemble.PROBE.read_bytes())
    monkeypatch.setattr(assemble, "PROBE", copy)
    return copy


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tools that were run, in order."""
    ran: list[str] = []
    run = subprocess.run

    def keep(command, **options):
        ran.append(command[0])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", keep)
    return ran


def assembled() -> bytes:
    """The probe, as a new process gets it."""
    return assemble.probe.__wrapped__()


@pytest.mark.usefixtures("cache")
def test_probe_is_assembled_once(commands):
    first = assembled()
    assert commands == ["gcc", "ld"]
    assert assembled() == first
    assert commands == ["gcc", "ld"]


@pytest.fixture
def new_process() -> Iterator[Callable[[], None]]:
    """Forget what this process has built, now and after the test."""

    def forget() -> None:
        assemble.probe.cache_clear()
        assemble.sender.cache_clear()

    forget()
    yield forget
    forget()


@pytest.mark.usefixtures("cache")
def test_all_is_built_for_where_there_is_no_compiler(new_process, monkeypatch, commands):
    assemble.build_all()
    new_process()
    commands.clear()
    monkeypatch.setenv("PATH", "")
    assert assemble.probe()
    assert assemble.sender().exists()
    assert commands == []


def test_changed_source_is_assembled_again(cache, source, commands):
    first = assembled()
    source.write_text(source.read_text().replace("incl\tCTL(HALTS)", "nop"))
    assert assembled() != first
    assert commands == ["gcc", "ld"] * 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("cache")
def test_changed_layout_is_assembled_again(monkeypatch, commands):
    first = assembled()
    monkeypatch.setattr(layout, "PORT_IDLE", layout.PORT_IDLE + 8)
    assert assembled() != first
    assert commands == ["gcc", "ld"] * 2


def test_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert assembled() == assembled()


@pytest.mark.usefixtures("cache")
def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssemblyError, match=r"^gcc and ld not found: .*apt-get install gcc"):
        assembled()


@pytest.mark.usefixtures("cache")
def test_cached_probe_needs_no_tools(monkeypatch):
    first = assembled()
    monkeypatch.setenv("PATH", "")
    assert assembled() == first


@pytest.mark.usefixtures("cache")
def test_mistake_in_the_source_is_shown(source):
    source.write_text("no_such_instruction\n")
    with pytest.raises(AssemblyError, match=r"(?s)^gcc could not build probe.S: .*no such inst"):
        assembled()


@pytest.mark.usefixtures("cache")
def test_probe_that_is_too_large_is_refused(source):
    source.write_text(source.read_text() + "\n.org 0x4000\n")
    with pytest.raises(AssemblyError, match="too large"):
        assembled()


# --- stepping and the log -------------------------------------------------------------------------


@pytest.fixture
def machine(system: System) -> Iterator[Machine]:
    """Two vCPUs."""
    with Machine(system, vcpu_ids=range(2)) as made:
        yield made


def test_guest_answers_what_it_is_asked(machine):
    assert machine[1].read(Register.ID) == 1 << 24
    machine[1].write(Register.TPR, 0x30)
    assert machine[1].read(Register.TPR) == machine[1].lapic[Register.TPR] == 0x30


def test_x2apic_guest_answers_by_msr(system):
    with Machine(system, vcpu_ids=range(2), apic_mode=ApicMode.X2APIC) as machine:
        assert machine[1].read(Register.ID) == 1


def test_log_is_forgotten_when_read(machine):
    machine.signal(Message(destination=1))
    machine[1].step()
    assert [taken.vector for taken in machine[1].log()] == [0x41]
    assert machine[1].log() == []


def test_full_log_is_read_whole(machine):
    for _ in range(layout.LOG_RECORDS):
        machine.send(Message(destination=1))
        machine[1].step()
    assert [taken.vector for taken in machine[1].log()] == [0x41] * layout.LOG_RECORDS


def test_overflow_of_the_log_is_reported(machine):
    for _ in range(layout.LOG_RECORDS + 1):
        machine.send(Message(destination=1))
        machine[1].step()
    with pytest.raises(GuestError, match="vCPU 1: 129 interrupts, the log has room for fewer"):
        machine[1].log()


# --- faults ---------------------------------------------------------------------------------------


def test_exception_in_the_guest_is_an_error(machine):
    with pytest.raises(GuestError, match=r"^vCPU 1: exception 13$"):
        machine[1].wrmsr(EFER, 1 << 63)


def test_guest_that_left_its_path_is_an_error(machine):
    machine[1].vcpu.set_regs(abi.kvm_regs(rip=1 << 33, rflags=0x202, rsp=layout.AREAS))
    with pytest.raises(GuestError, match=r"^vCPU 1: exception 14$"):
        machine[1].step()


def test_shutdown_is_an_error(machine):
    sregs = machine[1].vcpu.get_sregs()
    sregs.idt.limit = 0
    machine[1].vcpu.set_sregs(sregs)
    with pytest.raises(GuestError, match=r"^vCPU 1: unexpected KVM_EXIT_SHUTDOWN$"):
        machine[1].wrmsr(EFER, 1 << 63)


def test_exit_to_another_port_is_an_error(machine):
    machine[1].handler(pause=True)
    machine.signal(Message(destination=1))
    with pytest.raises(GuestError, match=r"^vCPU 1: unexpected KVM_EXIT_IO port 0x1f1$"):
        machine[1].step()


# --- vCPUs in threads -----------------------------------------------------------------------------


def test_spinning_vcpu_is_kicked_out(machine):
    with machine[1].spinning() as running:
        assert not running.left
        assert running.kick() is False
        assert running.left


def test_halted_vcpu_is_kicked_out(machine):
    with machine[1].halted() as running:
        assert running.kick() is False
        assert running.left


def test_vcpu_that_left_by_itself_is_told_from_one_that_was_kicked(machine):
    with machine[1].halted() as running:
        machine.send(Message(destination=1))
        running.finish()
        assert running.kick() is True


def test_kicked_vcpu_runs_on(machine):
    with machine[1].spinning():
        pass
    machine[1].step()
    machine.signal(Message(destination=1)).accepted_by(1)
    assert [taken.vector for taken in machine[1].take()] == [0x41]


def test_waiting_in_vain_is_an_error(machine, monkeypatch):
    monkeypatch.setattr(running, "DEADLINE", 0.0)
    with pytest.raises(GuestError, match=r"^vCPU 1: waited 0 s for Godot$"):
        machine[1].in_thread().wait_for(lambda: False, "Godot")


def test_failure_in_the_thread_is_raised_where_it_is_waited_for(machine):
    machine[1].vcpu.run = lambda: machine[1].vcpu.set_mp_state(0xFF)
    refused = pytest.raises(KvmError, match=r"^KVM_SET_MP_STATE: EINVAL")
    with refused, machine[1].in_thread() as thread:
        thread.finish()


# --- machines that serve many tests ---------------------------------------------------------------


def test_reset_machine_is_as_new(machine):
    before = machine.snapshots()
    machine.signal(Message(destination=1))
    machine[0].configure(tpr=0x20, svr=0xFF, id=9)
    machine[1].handler(pause=True)
    machine[1].run_to_handler()
    assert machine.reset()
    assert machine.snapshots() == before
    assert [cpu.take() for cpu in machine.cpus] == [[], []]


def test_reset_takes_nmis_back(machine):
    nmi = Message(destination=1, delivery_mode=DeliveryMode.NMI)
    machine[1].handler(pause=True)
    for _ in range(3):
        machine.signal(nmi)
    machine[1].run_to_handler()  # one in its handler, which holds the next back, and one pending
    assert machine.reset()
    assert machine[1].take() == []
    machine.signal(nmi)
    assert [taken.vector for taken in machine[1].take()] == [2]


@pytest.mark.parametrize(
    "mode",
    [DeliveryMode.REMRD, DeliveryMode.INIT, DeliveryMode.SIPI],
    ids=lambda mode: mode.name,
)
def test_machine_that_took_a_signal_is_not_shared(machine, mode):
    machine.signal(Message(destination=1, delivery_mode=mode))
    assert not machine.reset()


def test_machine_whose_guest_wrote_an_msr_is_not_shared(machine):
    machine[1].wrmsr(KERNEL_GS_BASE, 0)
    assert not machine.reset()


def test_machine_in_another_mode_is_not_shared(machine):
    machine[1].apic_mode = ApicMode.X2APIC
    assert not machine.reset()


def test_machine_with_another_vcpu_is_not_shared(machine):
    machine.add_cpu(2)
    assert not machine.reset()


def test_machine_with_a_pending_sipi_is_not_shared(machine):
    machine[1].mp_state = abi.KVM_MP_STATE_INIT_RECEIVED
    machine[1].mp_state = abi.KVM_MP_STATE_SIPI_RECEIVED
    assert not machine.reset()


# --- before an injection --------------------------------------------------------------------------


def test_state_that_nobody_touched_is_not_read_again(machine):
    first = machine.signal(Message(destination=1))
    second = machine.signal(Message(vector=0x42, destination=1))
    assert second.before is first.after


@pytest.mark.parametrize(
    "touch",
    [
        lambda machine: machine[1].configure(tpr=0x20),
        lambda machine: machine[1].step(),
        lambda machine: machine.send(Message(vector=0x43, destination=1)),
    ],
    ids=["host", "guest", "message"],
)
def test_state_that_was_touched_is_read_again(machine, touch):
    first = machine.signal(Message(destination=1))
    touch(machine)
    second = machine.signal(Message(vector=0x42, destination=1))
    assert second.before != first.after


def test_state_that_reading_changes_is_read_again(machine):
    first = machine.signal(Message(destination=1, delivery_mode=DeliveryMode.INIT))
    second = machine.signal(Message(vector=0x42, destination=0))
    assert second.before != first.after


# --- nothing hangs --------------------------------------------------------------------------------

SPINS = """
@clause("guest.running")
def test_spins(machine):
    machine.memory[0x9000:0x9002] = bytes.fromhex("ebfe")  # jmp to itself
    regs = machine[0].vcpu.get_regs()
    regs.rip = 0x9000
    machine[0].vcpu.set_regs(regs)
    machine[0].step()

@clause("guest.taken-once")
def test_next(machine):
    machine.signal(Message()).accepted_by(0)
    assert [taken.vector for taken in machine[0].take()] == [0x41]
"""


@pytest.mark.parametrize("workers", [0, 2], ids="-n{}".format)
def test_vcpu_that_never_exits_ends_its_test_and_no_other(suite, workers):
    suite.add(SPINS)
    run = suite.run("-n", str(workers), "--timeout=1", "--dist=loadfile")
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert run.lines_with("Timeout (>1.0s) from pytest-timeout")


# --- what the kernel's map of LAPICs was built from -----------------------------------------------


@pytest.fixture
def stale() -> Iterator[Machine]:
    """A machine whose map lacks the newest vCPU, and is of before 32-bit IDs were enabled."""
    with System() as system, Machine(system, vcpu_ids=(0,)) as machine:
        machine.add_cpu(1)
        machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, abi.KVM_X2APIC_API_USE_32BIT_IDS)
        yield machine


def test_stale_map_is_in_the_topology(stale):
    topology = stale.topology()
    assert (topology.mapped_api, topology.vcpus[1].mapped) == (0, False)
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: machine[0].configure(),
        lambda machine: machine[0].write(Register.LDR, 1 << 24),
        lambda machine: machine[0].write(Register.SVR, 0xFF),
        lambda machine: machine[0].wrmsr(
            IA32_APIC_BASE, 0xFEE00000 | 0x100 | ApicMode.X2APIC.value
        ),
        lambda machine: setattr(machine[0], "apic_mode", ApicMode.DISABLED),
        lambda machine: machine.signal(Message(delivery_mode=DeliveryMode.INIT)),
    ],
    ids=["KVM_SET_LAPIC", "guest-ldr", "guest-svr", "guest-mode", "KVM_SET_SREGS", "INIT"],
)
def test_map_is_built_again_by(stale, change):
    change(stale)
    topology = stale.topology()
    assert (topology.mapped_api, topology.vcpus[1].mapped) == (None, True)
    nmi = Message(destination=1, delivery_mode=DeliveryMode.NMI)
    assert stale.signal(nmi).returned == "1"


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: machine[0].write(Register.SVR, 0x1F0),
        lambda machine: machine[0].write(Register.TPR, 0),
        lambda machine: setattr(machine[0], "mode", ApicMode.XAPIC),
    ],
    ids=["guest-svr-still-enabled", "guest-tpr", "same-mode"],
)
def test_map_is_not_built_again_by(stale, change):
    change(stale)
    topology = stale.topology()
    assert (topology.mapped_api, topology.vcpus[1].mapped) == (0, False)
    nmi = Message(destination=1, delivery_mode=DeliveryMode.NMI)
    assert stale.signal(nmi).returned == "0"
