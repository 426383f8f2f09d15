# SPDX-License-Identifier: GPL-2.0-only
"""The guest on the real /dev/kvm: assembling, the log, faults, threads, and machines in a pool."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.apic import ApicMode, DeliveryMode, Message, Register
from helpers.cache import cache_directory
from helpers.guest import GuestError, Machine, assemble, layout, running
from helpers.guest.assemble import AssemblyError
from helpers.guest.pool import MachinePool
from helpers.kvm import KvmError, System, abi

EFER = 0xC0000080
KERNEL_GS_BASE = 0xC0000102

# --- assembling -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_directory()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of probe.S that the test may change."""
    copy = tmp_path / "probe.S"
    copy.write_bytes(assemble.PROBE.read_bytes())
    monkeypatch.setattr(assemble, "PROBE", copy)
    return copy


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tools that the test has run, in order."""
    ran: list[str] = []
    run = subprocess.run

    def keep(command, **options):
        ran.append(command[0])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", keep)
    return ran


def assembled() -> bytes:
    """Return the probe as a new process gets it, from the file."""
    return assemble.probe.__wrapped__()


@pytest.mark.usefixtures("cache")
def test_probe_is_assembled_once(commands):
    first = assembled()
    assert commands == ["gcc"]
    assert assembled() == first
    assert commands == ["gcc"]


@pytest.fixture
def new_process() -> Iterator[Callable[[], None]]:
    """Return a function that forgets the builds of this process. Called around the test too."""

    def forget() -> None:
        assemble.probe.cache_clear()
        assemble.library.cache_clear()

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
    assert all(assemble.library(source).exists() for source in assemble.SOURCES)
    assert commands == []


def test_changed_source_is_assembled_again(cache, source, commands):
    first = assembled()
    source.write_text(source.read_text().replace("incl\tCTL(HALTS)", "nop"))
    assert assembled() != first
    assert commands == ["gcc"] * 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("cache")
def test_changed_layout_is_assembled_again(monkeypatch, commands):
    first = assembled()
    monkeypatch.setattr(layout, "PORT_IDLE", layout.PORT_IDLE + 8)
    assert assembled() != first
    assert commands == ["gcc"] * 2


def test_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    own = SimpleNamespace(name=str(tmp_path))
    monkeypatch.setattr("helpers.cache._directory_of_process", lambda: own)
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
    machine[1].run_to_handler()  # the handler blocks further NMIs: one is pending
    assert machine.reset()
    assert machine[1].take() == []
    machine.signal(nmi)
    assert [taken.vector for taken in machine[1].take()] == [2]


@pytest.mark.parametrize(
    "delivery_mode",
    [DeliveryMode.REMRD, DeliveryMode.INIT, DeliveryMode.SIPI],
    ids=lambda delivery_mode: delivery_mode.name,
)
def test_machine_that_took_a_signal_is_not_shared(machine, delivery_mode):
    machine.signal(Message(destination=1, delivery_mode=delivery_mode))
    assert not machine.reset()


def test_machine_whose_guest_wrote_an_msr_is_not_shared(machine):
    machine[1].wrmsr(KERNEL_GS_BASE, 0)
    assert not machine.reset()


def test_machine_in_another_apic_mode_is_not_shared(machine):
    machine[1].apic_mode = ApicMode.X2APIC
    assert not machine.reset()


def test_machine_with_another_vcpu_is_not_shared(machine):
    machine.add_cpu(2)
    assert not machine.reset()


def test_machine_with_a_pending_sipi_is_not_shared(machine):
    machine[1].mp_state = abi.KVM_MP_STATE_INIT_RECEIVED
    machine[1].mp_state = abi.KVM_MP_STATE_SIPI_RECEIVED
    assert not machine.reset()


# --- the pool -------------------------------------------------------------------------------------


@pytest.fixture
def pool(system: System) -> Iterator[MachinePool]:
    """A pool without machines."""
    with MachinePool(system) as made:
        yield made


@pytest.mark.parametrize("vcpu_ids", [[0, 1], range(2)], ids=["list", "range"])
def test_vcpu_ids_of_any_type_mean_the_same_machine(pool, vcpu_ids):
    shared = pool.machine(vcpu_ids=(0, 1))
    assert pool.machine(vcpu_ids=vcpu_ids) is shared
    assert [cpu.vcpu.vcpu_id for cpu in shared.cpus] == [0, 1]


def test_other_options_mean_another_machine(pool):
    assert pool.machine(vcpu_ids=[0, 1]) is not pool.machine(vcpu_ids=[1, 0])


def test_machine_that_cannot_be_reset_is_closed_and_replaced(pool):
    machine = pool.machine()
    machine.add_cpu(1)
    assert [cpu.index for cpu in pool.machine().cpus] == [0]
    assert machine.fd == -1


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
