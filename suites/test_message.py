"""The message, bit by bit: vectors, delivery modes, trigger and level, and what is ignored."""

from itertools import product

import pytest

from helpers.apic import DeliveryMode, DestinationMode, Message, Register, TriggerMode
from helpers.apic.message import LAYOUT
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation

PHYSICAL, LOGICAL = DestinationMode
EDGE, LEVEL = TriggerMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

HEX = "{:#04x}".format


# --- vectors --------------------------------------------------------------------------------------


@clause("message.vector")
@pytest.mark.parametrize("priority", range(1, 16), ids="0x{0:x}0-0x{0:x}f".format)
def test_vector_is_raised(machine, priority):
    for vector in range(priority << 4, (priority << 4) + 16):
        machine.signal(Message(vector=vector, destination=1)).returns(1).accepted_by(1)


@clause("message.low-vectors")
@pytest.mark.parametrize("vector", range(16), ids=HEX)
def test_low_vector_is_pending_for_ever(machine, vector):
    machine.signal(Message(vector=vector, destination=1)).returns(1).accepted_by(1)
    expect("vectors taken", machine[1].take(), [])
    expect("IRR", machine[1].lapic.irr, {vector})


@clause("message.illegal-vector")
@deviation("illegal-vector-accepted")
@pytest.mark.parametrize("vector", range(16), ids=HEX)
def test_illegal_vector_is_not_accepted(machine, vector):
    machine.signal(Message(vector=vector, destination=1)).reached_nobody()


@clause("message.illegal-vector")
@pytest.mark.parametrize("vector", range(16), ids=HEX)
def test_illegal_vector_is_not_delivered_to_the_guest(machine, vector):
    machine.signal(Message(vector=vector, destination=1))
    expect("vectors taken", machine[1].take(), [])


@clause("message.vector")
def test_all_vectors_can_be_pending_at_once(machine):
    for vector in range(16, 256):
        machine.signal(Message(vector=vector, destination=1)).returns(1)
    expect("IRR", machine[1].lapic.irr, set(range(16, 256)))


@clause("message.vector")
@pytest.mark.parametrize("mode", [NMI, INIT], ids=lambda mode: mode.name)
@pytest.mark.parametrize("vector", [0, 0x02, 0x41, 0xFF], ids=HEX)
def test_vector_of_a_signal_is_ignored(machine, mode, vector):
    message = Message(vector=vector, destination=1, delivery_mode=mode)
    machine.signal(message).returns(1).accepted_by(1)


# --- trigger mode and level -----------------------------------------------------------------------

TRIGGERS = pytest.mark.parametrize("trigger", TriggerMode, ids=lambda mode: mode.name)
LEVELS = pytest.mark.parametrize("level", [0, 1], ids=["deassert", "assert"])
VECTOR_MODES = pytest.mark.parametrize("mode", [FIXED, LOWEST], ids=lambda mode: mode.name)


@clause("message.trigger-mode")
@VECTOR_MODES
@TRIGGERS
@LEVELS
def test_tmr_is_the_trigger_mode(machine, mode, trigger, level):
    vectors = (0x10, 0x41, 0x7F, 0x80, 0xFF)
    for vector in vectors:
        message = Message(vector, 1, delivery_mode=mode, trigger_mode=trigger, level=level)
        machine.signal(message).returns(1).accepted_by(1)
    expect("TMR", machine[1].lapic.tmr, set(vectors) if trigger else set())


@clause("message.trigger-mode")
@VECTOR_MODES
def test_edge_after_level_clears_the_tmr_bit(machine, mode):
    for trigger, tmr in ((LEVEL, {0x41}), (EDGE, set()), (LEVEL, {0x41})):
        message = Message(destination=1, delivery_mode=mode, trigger_mode=trigger)
        shot = machine.signal(message).returns(1).accepted_by(1)
        expect("TMR", shot.after[1].lapic.tmr, tmr)


@clause("message.trigger-mode")
def test_tmr_bits_of_other_vectors_stay(machine):
    machine.signal(Message(vector=0x52, destination=1, trigger_mode=LEVEL))
    machine.signal(Message(vector=0x51, destination=1)).accepted_by(1)
    expect("TMR", machine[1].lapic.tmr, {0x52})


@clause("message.trigger-mode")
def test_blocked_message_leaves_the_tmr(machine):
    machine[1].configure(svr=0xFF)
    machine.signal(Message(destination=1, trigger_mode=LEVEL)).blocked().reached_nobody()


@clause("message.delivery-mode")
@TRIGGERS
@LEVELS
@pytest.mark.parametrize("mode", [NMI, INIT], ids=lambda mode: mode.name)
def test_trigger_and_level_of_a_signal_are_ignored(machine, mode, trigger, level):
    message = Message(destination=1, delivery_mode=mode, trigger_mode=trigger, level=level)
    machine.signal(message).returns(1).accepted_by(1)


@clause("message.ignored-bits")
@pytest.mark.parametrize("mode", DeliveryMode, ids=lambda mode: mode.name)
def test_trigger_and_level_do_not_change_the_return_value(machine, kernel, mode):
    accepts = mode is not EXTINT and (mode is not SMI or kernel.has_smm)
    for trigger, level in product(TriggerMode, (0, 1)):
        message = Message(destination=1, delivery_mode=mode, trigger_mode=trigger, level=level)
        machine.signal(message).returns(int(accepts))


# --- delivery modes -------------------------------------------------------------------------------


@clause("message.delivery-mode")
@pytest.mark.parametrize("mode", [FIXED, LOWEST, NMI, INIT], ids=lambda mode: mode.name)
@pytest.mark.parametrize("destination", [1, 0xFF], ids=["unicast", "broadcast"])
def test_delivery_mode_raises_what_it_names(machine, mode, destination):
    shot = machine.signal(Message(destination=destination, delivery_mode=mode)).delivered()
    shot.accepted_by(*([1] if destination == 1 else range(4)))


@clause("message.delivery-mode")
def test_smi_is_pending(machine, kernel):
    if not kernel.has_smm:
        pytest.skip("the kernel has no SMM (KVM_CAP_X86_SMM is 0)")
    machine.signal(Message(destination=1, delivery_mode=SMI)).returns(1).accepted_by(1)


@clause("message.delivery-mode")
def test_sipi_starts_a_waiting_processor_at_its_page(machine):
    machine[1].mp_state = abi.KVM_MP_STATE_INIT_RECEIVED
    message = Message(destination=1, delivery_mode=SIPI, vector=0x41)
    machine.signal(message).returns(1).accepted_by(1)
    code = machine[1].vcpu.get_sregs().cs
    expect("CS selector, base", (hex(code.selector), hex(code.base)), ("0x4100", "0x41000"))


# --- ignored bits ---------------------------------------------------------------------------------

IGNORED = [field for field in LAYOUT if "reserved" in field.name or "ignored" in field.name]
IGNORED_BITS = [
    pytest.param(field.word, bit, id=f"{field.word}-bit{bit}")
    for field in IGNORED
    if field.word != "address_hi"
    for bit in range(field.low, field.high + 1)
] + [pytest.param("address_lo", bit, id=f"address_lo-bit{bit}") for bit in range(20, 32)]


def flip(message, word, bit):
    words = {name: getattr(message, name) for name in ("address_lo", "address_hi", "data")}
    words[word] ^= 1 << bit
    return Message.decode(**words)


@clause("message.ignored-bits")
@pytest.mark.parametrize("word, bit", IGNORED_BITS)
def test_bit_is_ignored(machine, word, bit):
    machine.signal(flip(Message(destination=2), word, bit)).returns(1).accepted_by(2)


@clause("message.ignored-bits")
@pytest.mark.parametrize("word, bit", IGNORED_BITS)
def test_bit_is_ignored_in_a_logical_message(machine, word, bit):
    message = Message(destination=6, destination_mode=LOGICAL, trigger_mode=LEVEL)
    machine.signal(flip(message, word, bit)).returns(2).accepted_by(1, 2)


@clause("message.ignored-bits")
@pytest.mark.parametrize("base", [0x000, 0xFED, 0xFEF, 0xFFF], ids="{:#x}".format)
def test_address_base_is_ignored(machine, base):
    machine.signal(Message(destination=2, address_base=base)).returns(1).accepted_by(2)


@clause("message.ignored-bits")
def test_message_to_address_0_goes_to_apic_0(machine):
    machine.signal(Message.decode(0, 0, 0x41)).returns(1).accepted_by(0)


@clause("cpuid.ext-dest-id")
@pytest.mark.parametrize("bit", range(5, 12), ids="bit{}".format)
def test_extended_destination_id_is_not_decoded(shared_machine, bit):
    machine = shared_machine(vcpu_ids=(0, 1, 256, 257), x2apic_api=1)
    message = Message(destination=1, address_reserved_11_4=1 << bit - 4)
    machine.signal(message).returns(1).accepted_by(1)


@clause("cpuid.ext-dest-id")
def test_extended_destination_id_is_not_advertised(system):
    features = system.cpuid_leaf(0x40000001)
    expect("KVM_FEATURE_MSI_EXT_DEST_ID", features.eax >> 15 & 1, 0)


@clause("message.low-vectors")
@pytest.mark.parametrize("vector", range(16), ids=HEX)
def test_low_vector_records_no_error(machine, vector):
    machine.signal(Message(vector=vector, destination=1))
    expect("ESR", machine[1].lapic[Register.ESR], 0)
