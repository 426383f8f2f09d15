# SPDX-License-Identifier: GPL-2.0-only
"""The ioctl at its boundary: number, structure, file descriptors, callers, and order of the checks.

Clauses: msi.struct, abi.other-numbers, msi.vm-ioctl, abi.errno, msi.input-only,
msi.returns-error, msi.same-process, abi.compat.

api.rst promises that a wrong caller or descriptor fails, and names no errno: the tests of that
promise accept any error. The clause abi.errno has tests for each errno, and for the check that wins
where several would fail. Whatever the error, no vCPU may change.
"""

import ctypes
import mmap
import os
import threading
from errno import EBADF, EFAULT, EINVAL, EIO, ENOTTY, EPERM

import pytest

from helpers.apic import Message
from helpers.guest import expect
from helpers.kvm import UserPages, abi, attempt, compat_ioctl, has_compat_entry, in_forked_child
from helpers.kvm.ioctl import errno_name
from helpers.kvm.process import PROT_NONE
from helpers.verdicts import clause
from suites import each
from suites.common import to

SIZE = ctypes.sizeof(abi.kvm_msi)
TO_ALL = to(0xFF)


def good(vector):
    """Return a message to all vCPUs. Of several, each needs its own vector to show its effect."""
    return abi.kvm_msi(address_lo=TO_ALL.address_lo, data=vector)


GOOD = good(vector=0x41)
UNDEFINED_FLAG = abi.kvm_msi(address_lo=TO_ALL.address_lo, data=TO_ALL.data, flags=1 << 31)

DIRECTIONS = {"_IO": 0, "_IOW": 1, "_IOR": 2, "_IOWR": 3}
SIZES = (0, 16, 20, 24, 28, 31, 32, 33, 36, 40, 64, 0x3FFF)


@pytest.fixture
def pages():
    """Two pages of this process, below 4 GiB."""
    with UserPages() as mapped:
        yield mapped


@pytest.fixture
def send(machine, pages):
    """Return a function that issues the ioctl and observes all vCPUs, whatever the outcome.

    It writes ``msi`` to ``address``, unless ``write`` is False, and passes the address on. ``by``
    calls the kernel.
    """

    def call(address=None, msi=GOOD, fd=None, request=abi.KVM_SIGNAL_MSI, write=True, by=attempt):
        where = pages.address if address is None else address
        if write:
            pages.write(bytes(msi), where)
        descriptor = machine.fd if fd is None else fd
        return machine.observe(msi, lambda: by(descriptor, request, where))

    return call


def through_compat_entry(fd, request, address):
    return compat_ioctl(fd, request.number, address)


def in_child(fd, request, address):
    return in_forked_child(lambda: attempt(fd, request, address))


# --- number and size ------------------------------------------------------------------------------


@clause("msi.struct")
def test_number_is_0x4020aea5(send):
    send(request=abi.Request("KVM_SIGNAL_MSI", 0x4020AEA5)).returns(4).accepted_by(0, 1, 2, 3)


@clause("msi.struct")
def test_structure_has_32_bytes(send, pages):
    last = pages.end - SIZE
    send(last).returns(4)
    send(last + 1, write=False).fails(EFAULT)


@clause("abi.other-numbers")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_other_size_or_direction_is_another_ioctl(send, direction):
    for size in SIZES:
        request = abi.Request(f"{direction}({size})", abi.ioc(DIRECTIONS[direction], 0xA5, size))
        if request.number != abi.KVM_SIGNAL_MSI.number:
            injection = send(request=request)
            expect(f"outcome of {request.name}", injection.returned, "-1 ENOTTY")
            injection.reached_nobody()


# --- file descriptors -----------------------------------------------------------------------------

DESCRIPTORS = {
    "system": EINVAL,
    "vcpu": EINVAL,
    "eventfd": ENOTTY,
    "pipe": ENOTTY,
    "dev-null": ENOTTY,
    "closed": EBADF,
    "minus-one": EBADF,
}


@pytest.fixture
def descriptor(request, system, machine):
    """A file descriptor that is no VM."""
    opened = []
    match request.param:
        case "system":
            yield system.fd
        case "vcpu":
            yield machine[0].vcpu.fd
        case "eventfd":
            opened = [os.eventfd(0)]
        case "pipe":
            opened = [*os.pipe()]
        case "dev-null":
            opened = [os.open("/dev/null", os.O_RDWR)]
        case "closed":
            fd = os.dup(machine.fd)
            os.close(fd)
            yield fd
        case "minus-one":
            yield -1
    if opened:
        yield opened[0]
    for fd in opened:
        os.close(fd)


@clause("msi.vm-ioctl")
@pytest.mark.parametrize("descriptor", DESCRIPTORS, indirect=True)
def test_only_a_vm_takes_the_ioctl(send, descriptor):
    injection = send(fd=descriptor).reached_nobody()
    expect("return value", injection.result, -1)


@clause("abi.errno")
@pytest.mark.parametrize(
    "descriptor, code",
    DESCRIPTORS.items(),
    indirect=["descriptor"],
    ids=[f"{name}-{errno_name(code)}" for name, code in DESCRIPTORS.items()],
)
def test_errno_on_other_descriptors(send, descriptor, code):
    send(fd=descriptor).fails(code)


@clause("msi.vm-ioctl")
def test_duplicated_vm_descriptor_is_the_vm(send, machine):
    fd = os.dup(machine.fd)
    try:
        send(fd=fd).returns(4).accepted_by(0, 1, 2, 3)
    finally:
        os.close(fd)


# --- the structure's memory -----------------------------------------------------------------------


@clause("msi.input-only")
@pytest.mark.parametrize("msi", [GOOD, UNDEFINED_FLAG], ids=["delivered", "rejected"])
def test_structure_is_not_written(send, pages, msi):
    send(pages.address + 16, msi=msi)
    around = pages.read(pages.address, 16 + SIZE + 16)
    expect("memory around the structure", around.hex(), (bytes(16) + bytes(msi) + bytes(16)).hex())


@clause("msi.input-only")
def test_structure_with_all_ignored_bytes_set_is_not_written(send, pages):
    msi = abi.kvm_msi.from_buffer_copy(b"\xff" * SIZE)
    msi.address_lo, msi.data, msi.flags = GOOD.address_lo, GOOD.data, 1
    send(msi=msi)
    expect("structure", pages.read(pages.address, SIZE).hex(), bytes(msi).hex())


@clause("msi.input-only")
def test_structure_in_read_only_memory(send, pages):
    pages.write(bytes(GOOD), pages.address)
    pages.protect_first(mmap.PROT_READ)
    send(write=False).returns(4).accepted_by(0, 1, 2, 3)


@clause("msi.input-only")
def test_structure_at_any_alignment(send, pages):
    for offset in range(1, 32):
        injection = send(pages.address + offset, good(vector=0x40 + offset))
        injection.returns(4).accepted_by(0, 1, 2, 3)


@clause("msi.input-only")
def test_structure_at_the_end_of_a_page(send, pages):
    pages.protect_second(PROT_NONE)
    send(pages.boundary - SIZE).returns(4).accepted_by(0, 1, 2, 3)


@clause("msi.input-only")
def test_structure_across_two_pages(send, pages):
    for behind in range(1, 32):
        injection = send(pages.boundary - SIZE + behind, good(vector=0x40 + behind))
        injection.returns(4).accepted_by(0, 1, 2, 3)


UNREADABLE = {
    "null": 0,
    "one": 1,
    "last-user-page": 0x7FFFFFFFF000,
    "non-canonical": 1 << 63,
    "kernel": 0xFFFFFFFF81000000,
    "last-bytes": 2**64 - SIZE,
    "wraps": 2**64 - 1,
}


@clause("msi.returns-error")
@pytest.mark.parametrize("address", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_address_faults(send, address):
    send(address, write=False).fails(EFAULT).reached_nobody()


@clause("msi.returns-error")
@pytest.mark.parametrize("state", ["unmapped", "prot-none"])
def test_partly_unreadable_structure_faults(send, pages, state):
    pages.unmap_second() if state == "unmapped" else pages.protect_second(PROT_NONE)
    for behind in range(1, 33):
        msi, address = good(vector=0x40 + behind), pages.boundary - SIZE + behind
        pages.write(bytes(msi)[: SIZE - behind], address)
        send(address, msi, write=False).fails(EFAULT).reached_nobody()


# --- callers --------------------------------------------------------------------------------------


@clause("msi.same-process")
def test_forked_child_is_refused(send):
    injection = send(by=in_child).reached_nobody()
    expect("return value", injection.result, -1)


@clause("abi.errno")
def test_errno_in_a_forked_child(send):
    send(by=in_child).fails(EIO)


@clause("msi.same-process")
def test_vm_works_on_after_a_child_was_refused(send):
    send(by=in_child)
    send().returns(4).accepted_by(0, 1, 2, 3)


@clause("msi.same-process")
def test_any_thread_of_the_process_may_call(send):
    outcome = []

    def in_thread(fd, request, address):
        thread = threading.Thread(target=lambda: outcome.append(attempt(fd, request, address)))
        thread.start()
        thread.join()
        return outcome[0]

    send(by=in_thread).returns(4).accepted_by(0, 1, 2, 3)


@pytest.fixture(scope="module")
def compat_entry():
    """The 32-bit system call entry. Skip the test if the kernel has none."""
    if not has_compat_entry():
        pytest.skip("the kernel has no 32-bit system call entry (CONFIG_IA32_EMULATION)")
    return through_compat_entry


@clause("abi.compat")
def test_compat_entry_delivers(send, compat_entry):
    send(by=compat_entry).returns(4).accepted_by(0, 1, 2, 3)


@clause("abi.compat")
@each.bit(range(1, 32))
def test_compat_entry_rejects_undefined_flag(send, compat_entry, bit):
    msi = abi.kvm_msi(address_lo=GOOD.address_lo, data=GOOD.data, flags=1 << bit)
    send(msi=msi, by=compat_entry).fails(EINVAL).reached_nobody()


@clause("abi.compat")
@each.value("address", [0, 1, 0xFFFFFFFF])
def test_compat_entry_faults_on_unreadable_address(send, compat_entry, address):
    send(address, write=False, by=compat_entry).fails(EFAULT).reached_nobody()


@clause("abi.compat")
def test_compat_entry_does_not_write_the_structure(send, compat_entry, pages):
    send(by=compat_entry)
    expect("structure", pages.read(pages.address, SIZE).hex(), bytes(GOOD).hex())


@clause("abi.compat")
@each.value("offset", [1, 2, 3, 4, 16], "offset{}")
def test_compat_entry_takes_any_alignment(send, compat_entry, pages, offset):
    send(pages.address + offset, by=compat_entry).returns(4)


# --- order of the checks --------------------------------------------------------------------------


@clause("abi.errno")
def test_descriptor_is_checked_before_the_address(send):
    send(0, fd=-1, write=False).fails(EBADF)


@clause("abi.errno")
def test_number_is_checked_before_the_address(send):
    request = abi.Request("KVM_SIGNAL_MSI of 24 bytes", abi.ioc(1, 0xA5, 24))
    send(0, request=request, write=False).fails(ENOTTY)


@clause("abi.errno")
def test_process_is_checked_before_the_address(send):
    send(0, write=False, by=in_child).fails(EIO)


@clause("abi.errno")
@each.value("vcpus", [0, 1], "{}-vcpus")
def test_address_is_checked_before_the_irqchip(machines, vcpus):
    vm = machines(irqchip="none", vcpu_ids=range(vcpus), power_on=False).vm
    expect("outcome", attempt(vm.fd, abi.KVM_SIGNAL_MSI, 0), (-1, EFAULT))


@clause("abi.errno")
def test_flags_are_checked_before_the_destination(machines):
    machine = machines(vcpu_ids=())
    machine.signal(TO_ALL).fails(EPERM)
    machine.signal(TO_ALL, flags=1 << 1).fails(EINVAL)


@clause("abi.errno")
def test_address_hi_is_checked_before_the_destination(machines):
    machine = machines(vcpu_ids=(), x2apic_api=abi.KVM_X2APIC_API_USE_32BIT_IDS)
    machine.signal(TO_ALL).fails(EPERM)
    machine.signal(Message(address_hi_reserved=1)).fails(EINVAL)
