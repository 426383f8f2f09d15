/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An option ROM that starts the kernel which the emulator has loaded into memory.
 *
 * The BIOS calls INIT while it looks for ROMs, and boots by INT 0x19. At that time the real-mode
 * part of the kernel is at REAL_MODE. Its first sector is data.
 *
 * Source: Documentation/arch/x86/boot.rst, "Running the Kernel".
 */
	.code16
	.globl	_start
_start:
	.byte	0x55, 0xaa, 1		/* signature, number of 512-byte blocks */
init:
	push	%ds
	xor	%ax, %ax
	mov	%ax, %ds
	movw	$boot, 0x19 * 4
	movw	%cs, 0x19 * 4 + 2
	pop	%ds
	lretw
boot:
	cli
	cld
	mov	$REAL_MODE >> 4, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %fs
	mov	%ax, %gs
	mov	%ax, %ss
	mov	$STACK, %sp
	ljmp	$(REAL_MODE >> 4) + 0x20, $0
