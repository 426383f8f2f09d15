/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The code that all vCPUs run: 256 gates into one handler, which logs the
 * registers of its LAPIC, and an idle loop, which exits to the host by port I/O.
 * All constants are -D options that layout.py defines.
 *
 * GS points to the area of the vCPU: layout.Control, the log and the stack.
 */
#define CTL(field) %gs:CONTROL_##field
#define LOG_REGISTER(name) \
	mov $REG_##name, %esi; call lapic_read; mov %eax, RECORD_##name(%rdi)

	.section .text
	.globl _start
_start:

/* Offset 0: a SIPI starts an AP here, in real mode, with CS = PROBE >> 4. */
	.code16
real_mode:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	gdt_pointer - _start
	mov	$0x20, %eax			/* CR4.PAE */
	mov	%eax, %cr4
	mov	$PML4, %eax
	mov	%eax, %cr3
	mov	$0xC0000080, %ecx		/* EFER.LME */
	rdmsr
	or	$0x100, %eax
	wrmsr
	mov	$0x80000011, %eax		/* CR0.PG, ET, PE */
	mov	%eax, %cr0
	ljmpl	$CODE64, $long_mode

	.code64
long_mode:
	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	lidt	idt_pointer
	mov	$0x1B, %ecx			/* IA32_APIC_BASE */
	rdmsr
	test	$APIC_BASE_X2APIC, %eax
	jnz	1f
	and	$~0xFFF, %eax
	mov	REG_ID(%rax), %eax
	shr	$24, %eax
	jmp	2f
1:	mov	$(0x800 + (REG_ID >> 4)), %ecx
	rdmsr
2:	imul	$AREA_SIZE, %eax, %eax		/* the APIC ID of an AP is the number of its area */
	add	$AREAS, %eax
	mov	%rax, %rsp
	add	$STACK_TOP, %rsp
	xor	%edx, %edx
	mov	$0xC0000101, %ecx		/* GS base */
	wrmsr
	sti
	jmp	idle

gdt_pointer:
	.word	0x17
	.long	GDT
idt_pointer:
	.word	0xFFF
	.quad	IDT

/* Offset NOPS: two instructions of one byte each, then the idle loop. */
	.org	NOPS
	nop
	nop

/*
 * Offset ENTRY64: the host starts a vCPU here, in long mode, with GS and RSP
 * set. IF may have any value.
 */
	.org	ENTRY64
idle:
	mov	CTL(OPERATION), %eax
	mov	CTL(ARGUMENT), %esi
	movl	$OP_NONE, CTL(OPERATION)
	cmp	$OP_LAPIC_READ, %eax
	je	op_lapic_read
	cmp	$OP_LAPIC_WRITE, %eax
	je	op_lapic_write
	cmp	$OP_RDMSR, %eax
	je	op_rdmsr
	cmp	$OP_WRMSR, %eax
	je	op_wrmsr
	cmp	$OP_CLI, %eax
	je	op_cli
	cmp	$OP_STI, %eax
	je	op_sti
	cmp	$OP_HLT, %eax
	je	op_hlt
	cmp	$OP_HLT_UNTIL_TAKEN, %eax
	je	op_hlt_until_taken
	cmp	$OP_SPIN, %eax
	je	op_spin
	cmp	$OP_READ_CR8, %eax
	je	op_read_cr8
	cmp	$OP_WRITE_CR8, %eax
	je	op_write_cr8
	cmp	$OP_STORE, %eax
	je	op_store
leave:
	mov	$PORT_IDLE, %edx
	out	%al, %dx
	jmp	idle

op_lapic_read:
	call	lapic_base_to_r8
	call	lapic_read
	mov	%rax, CTL(VALUE)
	jmp	leave
op_lapic_write:
	call	lapic_base_to_r8
	mov	CTL(VALUE), %rax
	call	lapic_write
	jmp	leave
op_rdmsr:
	mov	%esi, %ecx
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, CTL(VALUE)
	jmp	leave
op_wrmsr:
	mov	%esi, %ecx
	mov	CTL(VALUE), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
	jmp	leave
op_read_cr8:
	mov	%cr8, %rax
	mov	%rax, CTL(VALUE)
	jmp	leave
op_write_cr8:
	mov	CTL(VALUE), %rax
	mov	%rax, %cr8
	jmp	leave
op_cli:
	cli
	jmp	leave
op_sti:
	sti
	jmp	leave
op_hlt:
	incl	CTL(HALTS)
	hlt					/* does not change IF */
	jmp	leave
op_hlt_until_taken:
	incl	CTL(HALTS)
1:	cli					/* no interrupt between test and HLT */
	cmpl	$0, CTL(TAKEN)
	jne	op_sti
	sti
	hlt
	jmp	1b
op_store:
	mov	CTL(VALUE), %eax
	mov	%eax, (%rsi)
	jmp	leave
op_spin:
	incq	CTL(SPINS)
	cmpl	$0, CTL(STOP)
	je	op_spin
	jmp	leave

/* Read IA32_APIC_BASE into r8. Clobbers rax, ecx, rdx. */
lapic_base_to_r8:
	mov	$0x1B, %ecx
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, %r8
	ret

/*
 * Read the LAPIC register at offset esi into eax, in x2APIC mode into rax.
 * r8 is IA32_APIC_BASE. A disabled LAPIC reads as 0. Clobbers ecx, rdx.
 */
lapic_read:
	test	$APIC_BASE_X2APIC, %r8d
	jnz	1f
	xor	%eax, %eax
	test	$APIC_BASE_ENABLE, %r8d
	jz	2f
	mov	%r8, %rdx
	and	$~0xFFF, %rdx
	mov	(%rdx, %rsi), %eax
2:	ret
1:	mov	%esi, %ecx
	shr	$4, %ecx
	add	$0x800, %ecx
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	ret

/*
 * Write eax, in x2APIC mode rax, to the LAPIC register at offset esi. r8 is
 * IA32_APIC_BASE. Clobbers rax, ecx, rdx.
 */
lapic_write:
	test	$APIC_BASE_X2APIC, %r8d
	jnz	1f
	mov	%r8, %rdx
	and	$~0xFFF, %rdx
	mov	%eax, (%rdx, %rsi)
	ret
1:	mov	%esi, %ecx
	shr	$4, %ecx
	add	$0x800, %ecx
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
	ret

/* Write EOI. Clobbers rax, ecx, rdx, esi, r8. */
write_eoi:
	call	lapic_base_to_r8
	mov	$REG_EOI, %esi
	xor	%eax, %eax
	jmp	lapic_write

/*
 * The stack holds the vector, pushed by the gate, and the interrupt frame, which
 * starts with RIP.
 */
handler:
	push	%rax
	push	%rbx
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%r8
	mov	56(%rsp), %rbx			/* the vector */
	cmp	$2, %ebx
	je	1f
	cmp	$16, %ebx
	jb	fault				/* an exception */
1:	testl	$FLAG_PV_EOI, CTL(FLAGS)
	jz	7f
	btrl	$0, CTL(PV_EOI)			/* KVM clears the bit at the next exit */
	jc	6f
	call	write_eoi
	jmp	7f
6:	incl	CTL(PV_EOIS)
7:	testl	$FLAG_COUNT, CTL(FLAGS)
	jz	8f
	mov	%ebx, %edi
	imul	$COUNT_SIZE, %edi, %edi
	add	$COUNTS, %edi
	add	CTL(SELF_ADDRESS), %rdi
	mov	COUNT_SENT(%rdi), %eax
	mov	%eax, COUNT_SEEN(%rdi)
	incl	COUNT_TAKEN(%rdi)
	jmp	4f
8:	mov	CTL(TAKEN), %edi
	and	$(LOG_RECORDS - 1), %edi
	imul	$RECORD_SIZE, %edi, %edi
	add	$LOG, %edi
	add	CTL(SELF_ADDRESS), %rdi
	call	lapic_base_to_r8
	mov	%ebx, RECORD_VECTOR(%rdi)
	mov	%r8d, RECORD_APIC_BASE(%rdi)
	mov	64(%rsp), %eax
	mov	%eax, RECORD_RIP(%rdi)
	LOG_REGISTER(ID)
	LOG_REGISTER(TPR)
	LOG_REGISTER(PPR)
	LOG_REGISTER(LDR)
	LOG_REGISTER(SVR)
	xor	%ebx, %ebx
2:	mov	%ebx, %esi
	shl	$4, %esi
	add	$REG_ISR, %esi			/* ISR, TMR and IRR are adjacent: 24 words */
	call	lapic_read
	mov	%eax, RECORD_ISR(%rdi, %rbx, 4)
	inc	%ebx
	cmp	$24, %ebx
	jb	2b
	incl	CTL(TAKEN)

	testl	$FLAG_PAUSE, CTL(FLAGS)
	jz	4f
	testl	$FLAG_NEST, CTL(FLAGS)
	jz	3f
	sti
3:	mov	$PORT_HANDLER, %edx
	out	%al, %dx
	cli
4:	mov	56(%rsp), %rbx
	cmp	$2, %ebx
	je	5f				/* an NMI needs no EOI */
	testl	$FLAG_EOI, CTL(FLAGS)
	jz	5f
	call	write_eoi
5:	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rbx
	pop	%rax
	add	$8, %rsp
	iretq

fault:
	mov	%ebx, %eax
	mov	$PORT_FAULT, %edx
	out	%al, %dx
	jmp	fault

/*
 * Offset SMI_HANDLER: memory.py copies the handler to SMBASE + 0x8000. It runs
 * in 16-bit mode, with SMBASE as the base of CS.
 */
	.org	SMI_HANDLER
	.code16
	incl	%cs:(SMI_COUNTER - SMBASE)
	cmpl	$0, %cs:(SMI_PAUSE - SMBASE)
	je	1f
	mov	$PORT_SMI, %edx
	out	%al, %dx
1:	rsm				/* restores rdx */
	.code64

/* Offset GATES: a stub per vector. */
	.org	GATES
	.set	vector, 0
	.rept	256
	.org	GATES + vector * GATE_SIZE
	pushq	$vector
	jmp	handler
	.set	vector, vector + 1
	.endr
