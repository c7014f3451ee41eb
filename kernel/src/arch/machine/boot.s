.section .note.bulkhead, "a", @note
.balign 4
    .long 4
    .long 8
    .long {note}
    .asciz "Xen"
    .quad pvh_start_phys

.section .bss.tables, "aw", @nobits
.balign 4096
.global boot_tables
boot_tables:
    .skip 4096 * 8

.section .boot.text, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov esi, ebx
    mov edi, offset boot_tables_phys
    mov esp, edi
    add esp, 0x8000
    // pml4: the low 4 GiB, the same as the map of RAM (slot 262), the core (slot 260).
    lea eax, [edi + 0x1003]
    mov [edi], eax
    mov [edi + 262 * 8], eax
    lea eax, [edi + 0x2003]
    mov [edi + 260 * 8], eax
    // Four directories of 2 MiB pages.
    lea eax, [edi + 0x4003]
    mov [edi + 0x1000], eax
    add eax, 0x1000
    mov [edi + 0x1008], eax
    add eax, 0x1000
    mov [edi + 0x1010], eax
    add eax, 0x1000
    mov [edi + 0x1018], eax
    lea edx, [edi + 0x4000]
    mov eax, 0x83
    mov ecx, 2048
2:  mov [edx], eax
    add eax, 0x200000
    add edx, 8
    dec ecx
    jnz 2b
    // The core: 16 pages of 2 MiB from where it is loaded.
    lea eax, [edi + 0x3003]
    mov [edi + 0x2000], eax
    lea edx, [edi + 0x3000]
    mov eax, 0x200083
    mov ecx, 16
3:  mov [edx], eax
    add eax, 0x200000
    add edx, 8
    dec ecx
    jnz 3b

    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov cr3, edi
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    mov eax, offset boot_gdt_pointer_phys
    lgdt [eax]
    // The stack is the last of the tables' page until the jump; only this far return uses it.
    push 8
    mov eax, offset boot_long_phys
    push eax
    retf

.code64
.global boot_long
boot_long:
    lea rax, [rip + 4f]
    movabs rcx, 0xffff820000000000 - 0x200000
    add rax, rcx
    jmp rax
4:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    lea rsp, [rip + boot_stack + {stack_end}]
    mov edi, esi
    xor ebp, ebp
    call core_start
    ud2

.balign 8
.global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
.global boot_gdt_pointer
boot_gdt_pointer:
    .word 23
    .long boot_gdt_phys
    .long 0
.text
