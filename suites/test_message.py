# SPDX-License-Identifier: GPL-2.0-only
"""The fields of a message: vector, trigger mode and level, delivery mode, bits without a meaning.

Clauses: message.vector, message.low-vectors, message.illegal-vector, message.trigger-mode,
message.delivery-mode, message.ignored-bits, cpuid.ext-dest-id.

Vectors 0 to 15 have two clauses. The SDM calls them illegal: a LAPIC that receives one records an
error and does not deliver it. KVM accepts them into IRR, where they stay, since no processor
priority is low enough to take them.
"""

from itertools import product

import pytest

from helpers.apic import Message, Register, TriggerMode
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import NEEDS_SMM, expect_taken, to
from suites.names import (
    EDGE,
    EXTINT,
    FIXED,
    INIT,
    LEVEL,
    LOGICAL,
    LOWEST,
    NMI,
    PHYSICAL,
    SIPI,
    SMI,
    USE_32BIT_IDS,
)

# --- message.vector, message.low-vectors, message.illegal-vector ----------------------------------


@clause("message.vector")
@each.value("priority", range(1, 16), "0x{0:x}0-0x{0:x}f")
def test_vector_is_raised(machine, priority):
    for vector in range(priority << 4, (priority << 4) + 16):
        machine.signal(to(1, vector=vector)).returns(1).accepted_by(1)


@clause("message.low-vectors")
@each.vector(range(16))
def test_low_vector_is_pending_for_ever(machine, vector):
    machine.signal(to(1, vector=vector)).returns(1).accepted_by(1)
    expect_taken(machine[1])
    expect("IRR", machine[1].lapic.irr, {vector})


@clause("message.low-vectors")
@each.vector(range(16))
def test_low_vector_records_no_error(machine, vector):
    machine.signal(to(1, vector=vector))
    expect("ESR", machine[1].lapic[Register.ESR], 0)


@clause("message.illegal-vector")
@deviation("illegal-vector-accepted")
@each.vector(range(16))
def test_illegal_vector_is_not_accepted(machine, vector):
    machine.signal(to(1, vector=vector)).reached_nobody()


@clause("message.illegal-vector")
@each.vector(range(16))
def test_illegal_vector_is_not_delivered_to_the_guest(machine, vector):
    machine.signal(to(1, vector=vector))
    expect_taken(machine[1])


@clause("message.vector")
def test_all_vectors_can_be_pending_at_once(machine):
    for vector in range(16, 256):
        machine.signal(to(1, vector=vector)).returns(1)
    expect("IRR", machine[1].lapic.irr, set(range(16, 256)))


@clause("message.vector")
@each.delivery_mode(NMI, INIT)
@each.vector([0, 0x02, 0x41, 0xFF])
def test_vector_of_a_signal_is_ignored(machine, delivery_mode, vector):
    message = to(1, vector=vector, delivery_mode=delivery_mode)
    machine.signal(message).returns(1).accepted_by(1)


# --- message.trigger-mode -------------------------------------------------------------------------

EACH_LEVEL = pytest.mark.parametrize("level", [0, 1], ids=["deassert", "assert"])


@clause("message.trigger-mode")
@each.delivery_mode(FIXED, LOWEST)
@each.trigger_mode
@EACH_LEVEL
def test_tmr_is_the_trigger_mode(machine, delivery_mode, trigger_mode, level):
    vectors = (0x10, 0x41, 0x7F, 0x80, 0xFF)
    for vector in vectors:
        message = Message(
            vector, 1, PHYSICAL, delivery_mode, trigger_mode=trigger_mode, level=level
        )
        machine.signal(message).returns(1).accepted_by(1)
    expect("TMR", machine[1].lapic.tmr, set(vectors) if trigger_mode else set())


@clause("message.trigger-mode")
@each.delivery_mode(FIXED, LOWEST)
def test_edge_after_level_clears_the_tmr_bit(machine, delivery_mode):
    for trigger_mode, tmr in ((LEVEL, {0x41}), (EDGE, set()), (LEVEL, {0x41})):
        message = to(1, delivery_mode=delivery_mode, trigger_mode=trigger_mode)
        machine.signal(message).returns(1).accepted_by(1)
        expect("TMR", machine[1].lapic.tmr, tmr)


@clause("message.trigger-mode")
def test_tmr_bits_of_other_vectors_stay(machine):
    machine.signal(to(1, vector=0x52, trigger_mode=LEVEL))
    machine.signal(to(1, vector=0x51)).accepted_by(1)
    expect("TMR", machine[1].lapic.tmr, {0x52})


@clause("message.trigger-mode")
def test_blocked_message_leaves_the_tmr(machine):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(to(1, trigger_mode=LEVEL)).blocked().reached_nobody()


@clause("message.delivery-mode")
@each.trigger_mode
@EACH_LEVEL
@each.delivery_mode(NMI, INIT)
def test_trigger_and_level_of_a_signal_are_ignored(machine, delivery_mode, trigger_mode, level):
    message = to(1, delivery_mode=delivery_mode, trigger_mode=trigger_mode, level=level)
    machine.signal(message).returns(1).accepted_by(1)


@clause("message.ignored-bits")
@each.delivery_mode()
def test_trigger_and_level_do_not_change_the_return_value(machine, kernel, delivery_mode):
    accepts = delivery_mode is not EXTINT and (delivery_mode is not SMI or kernel.has_smm)
    for trigger_mode, level in product(TriggerMode, (0, 1)):
        message = to(1, delivery_mode=delivery_mode, trigger_mode=trigger_mode, level=level)
        machine.signal(message).returns(int(accepts))


# --- message.delivery-mode ------------------------------------------------------------------------


@clause("message.delivery-mode")
@each.delivery_mode(FIXED, LOWEST, NMI, INIT)
@pytest.mark.parametrize("destination", [1, 0xFF], ids=["unicast", "broadcast"])
def test_delivery_mode_raises_what_it_names(machine, delivery_mode, destination):
    injection = machine.signal(to(destination, delivery_mode=delivery_mode)).delivered()
    injection.accepted_by(*([1] if destination == 1 else range(4)))


@clause("message.delivery-mode")
@NEEDS_SMM
def test_smi_is_pending(machine):
    machine.signal(to(1, delivery_mode=SMI)).returns(1).accepted_by(1)


@clause("message.delivery-mode")
def test_sipi_starts_a_waiting_processor_at_its_page(machine):
    machine[1].mp_state = MpState.INIT_RECEIVED
    message = to(1, vector=0x41, delivery_mode=SIPI)
    machine.signal(message).returns(1).accepted_by(1)
    code = machine[1].vcpu.get_sregs().cs
    expect("CS selector, base", (hex(code.selector), hex(code.base)), ("0x4100", "0x41000"))


# --- message.ignored-bits and cpuid.ext-dest-id ---------------------------------------------------

IGNORED_BITS = {
    "address_lo": [*range(4, 12), *range(2), *range(20, 32)],
    "data": [*range(16, 32), *range(11, 14)],
}
EACH_IGNORED_BIT = pytest.mark.parametrize(
    "word, bit",
    [
        pytest.param(word, bit, id=f"{word}-bit{bit}")
        for word, ignored in IGNORED_BITS.items()
        for bit in ignored
    ],
)


def flip(message, word, bit):
    """Return ``message`` with one bit of one of its words flipped."""
    words = {name: getattr(message, name) for name in ("address_lo", "address_hi", "data")}
    words[word] ^= 1 << bit
    return Message.decode(**words)


@clause("message.ignored-bits")
@EACH_IGNORED_BIT
def test_bit_is_ignored(machine, word, bit):
    machine.signal(flip(to(2), word, bit)).returns(1).accepted_by(2)


@clause("message.ignored-bits")
@EACH_IGNORED_BIT
def test_bit_is_ignored_in_a_logical_message(machine, word, bit):
    message = to(6, LOGICAL, trigger_mode=LEVEL)
    machine.signal(flip(message, word, bit)).returns(2).accepted_by(1, 2)


@clause("message.ignored-bits")
@each.value("base", [0x000, 0xFED, 0xFEF, 0xFFF])
def test_address_base_is_ignored(machine, base):
    machine.signal(to(2, address_base=base)).returns(1).accepted_by(2)


@clause("message.ignored-bits")
def test_message_to_address_0_goes_to_apic_0(machine):
    machine.signal(Message.decode(0, 0, 0x41)).returns(1).accepted_by(0)


@clause("cpuid.ext-dest-id")
@each.bit(range(5, 12))
def test_extended_destination_id_is_not_decoded(shared_machine, bit):
    machine = shared_machine(vcpu_ids=(0, 1, 256, 257), x2apic_api=USE_32BIT_IDS)
    message = to(1, address_reserved_11_4=1 << bit - 4)
    machine.signal(message).returns(1).accepted_by(1)


@clause("cpuid.ext-dest-id")
def test_extended_destination_id_is_not_advertised(system):
    features = system.cpuid_leaf(0x40000001)
    expect("KVM_FEATURE_MSI_EXT_DEST_ID", features.eax >> 15 & 1, 0)
