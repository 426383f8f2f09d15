/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The arm64 guest: EL1, MMU off, no stack, no memory written.
 *
 * Each exit to the host is a load or store at EXITS, where no device is. The host answers the load
 * of EXIT_IDLE with an operation, and the loads of EXIT_ARGUMENT and EXIT_VALUE with the operands.
 * The IRQ handler stores the INTID that it read from ICC_IAR1_EL1 to EXIT_TAKEN, before the EOI.
 *
 * x19: EXITS. x20: interrupts taken. The handler uses x10 and x11, operations x0 to x3.
 */
	.text
	.globl	_start
_start:
	adr	x0, vectors
	msr	vbar_el1, x0
	mov	x19, #EXITS
	mov	x20, #0
	mov	x0, #7			/* SRE, DFB, DIB */
	msr	ICC_SRE_EL1, x0
	isb
	mov	x0, #0xff
	msr	ICC_PMR_EL1, x0
	mov	x0, #1
	msr	ICC_IGRPEN1_EL1, x0
	isb
	msr	daifclr, #2

idle:
	ldr	x0, [x19, #EXIT_IDLE]
	cbz	x0, idle
	ldr	x1, [x19, #EXIT_ARGUMENT]
	ldr	x2, [x19, #EXIT_VALUE]
	mov	x3, x0
	mov	x0, #0

	.macro	operation number, label
	cmp	x3, #\number
	b.eq	\label
	.endm
	operation OP_WFI, wfi
	operation OP_SPIN, spin
	operation OP_MASK, mask
	operation OP_UNMASK, unmask
	operation OP_READ32, read32
	operation OP_WRITE32, write32
	operation OP_READ64, read64
	operation OP_WRITE64, write64
	operation OP_PMR, pmr
	operation OP_IGRPEN1, igrpen1
	operation OP_HPPIR1, hppir1
	b	fault

/*
 * Wait for an interrupt, unless more than x2 were taken: the message may precede the operation.
 * Masked, so that no interrupt is taken between the comparison and the WFI.
 */
wfi:
	msr	daifset, #2
	cmp	x20, x2
	b.ne	1f
	wfi
1:	msr	daifclr, #2
	isb
	b	done
spin:
	cmp	x20, x2
	b.eq	spin
	b	done
mask:
	msr	daifset, #2
	b	done
unmask:
	msr	daifclr, #2
	isb
	b	done
read32:
	ldr	w0, [x1]
	b	done
write32:
	str	w2, [x1]
	dsb	sy
	b	done
read64:
	ldr	x0, [x1]
	b	done
write64:
	str	x2, [x1]
	dsb	sy
	b	done
pmr:
	msr	ICC_PMR_EL1, x2
	isb
	b	done
igrpen1:
	msr	ICC_IGRPEN1_EL1, x2
	isb
	b	done
hppir1:
	mrs	x0, ICC_HPPIR1_EL1
done:
	str	x0, [x19, #EXIT_DONE]
	b	idle

fault:
	mrs	x0, esr_el1
	str	x0, [x19, #EXIT_FAULT]
	b	fault

irq:
	mrs	x10, ICC_IAR1_EL1
	dsb	sy
	add	x20, x20, #1
	str	x10, [x19, #EXIT_TAKEN]
	mov	x11, #1023
	cmp	x10, x11
	b.eq	1f
	msr	ICC_EOIR1_EL1, x10
	isb
1:	eret

/* 16 vectors of 128 bytes. The second of the second group: IRQ, from this EL, with SP_ELx. */
	.balign	2048
vectors:
	.rept	5
	.balign	128
	b	fault
	.endr
	.balign	128
	b	irq
	.rept	10
	.balign	128
	b	fault
	.endr
