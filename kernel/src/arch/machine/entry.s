.macro push_registers
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
.endm

// Offsets below are those of UserRegs, which the interface fixes.
.altmacro
.macro vector_stub number
vector_\number:
    .if \number != 8 && (\number < 10 || \number > 14) && \number != 17 && \number != 21 && \number != 29 && \number != 30
    push 0
    .endif
    mov dword ptr [rsp + 4], \number
    .if \number == 1
    jmp debug_entry
    .elseif \number == 2 || \number == 8 || \number == 18
    jmp fatal_entry
    .else
    jmp common_entry
    .endif
.endm

.macro vector_word number
    .quad vector_\number
.endm

.section .text.entry, "ax"
.set n, 0
.rept 256
    vector_stub %n
    .set n, n + 1
.endr

// Frame: error and vector, rip, cs, rflags, rsp, ss.
common_entry:
    test byte ptr [rsp + 16], 3
    jz core_entry
guest_entry:
    push_registers
guest_saved:
    mov rdi, rsp
    mov rsp, [rdi + {stack_top}]
    xor ebp, ebp
    cld
    call core_from_guest
    mov rdi, rax
    mov rsp, [rdi + {stack_top}]
    jmp leave_core

.global resume_guest
resume_guest:
    mov rsp, rsi
leave_core:
    push [rdi + 160]
    push [rdi + 152]
    push [rdi + 144]
    movzx eax, word ptr [rdi + 136]
    push rax
    push [rdi + 128]
    mov r15, [rdi]
    mov r14, [rdi + 8]
    mov r13, [rdi + 16]
    mov r12, [rdi + 24]
    mov rbp, [rdi + 32]
    mov rbx, [rdi + 40]
    mov r11, [rdi + 48]
    mov r10, [rdi + 56]
    mov r9, [rdi + 64]
    mov r8, [rdi + 72]
    mov rax, [rdi + 80]
    mov rcx, [rdi + 88]
    mov rdx, [rdi + 96]
    mov rsi, [rdi + 104]
    mov rdi, [rdi + 112]
return_to_guest:
    iretq

// The processor did not take the frame; RSP is where it was before IRETQ.
return_refused:
    lea rsp, [rsp + 40]
    xor ebp, ebp
    cld
    call core_return_refused
    mov rdi, rax
    mov rsp, [rdi + {stack_top}]
    jmp leave_core

core_entry:
    push_registers
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    cld
    call core_from_core
    mov rsp, rbx
pop_and_return:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 8
    iretq

// #DB has a stack of its own, for a guest can have one reported on the first instruction of the SYSCALL
// stub, where RSP still is the guest's. One from ring 3 moves its frame to where it belongs.
debug_entry:
    test byte ptr [rsp + 16], 3
    jz core_entry
    push rax
    push rcx
    mov rax, [rip + syscall_area + 8]
    mov rcx, [rsp + 24]
    mov [rax - 40], rcx
    mov rcx, [rsp + 32]
    mov [rax - 32], rcx
    mov rcx, [rsp + 40]
    mov [rax - 24], rcx
    mov rcx, [rsp + 48]
    mov [rax - 16], rcx
    mov rcx, [rsp + 56]
    mov [rax - 8], rcx
    mov rcx, [rsp + 8]
    mov [rax - 48], rcx
    pop rcx
    lea rsp, [rax - 48]
    pop rax
    push 0
    mov dword ptr [rsp + 4], 1
    jmp guest_entry

fatal_entry:
    push_registers
    mov rdi, rsp
    and rsp, -16
    cld
    call core_fatal
    ud2

.macro syscall_stub number
    mov [rip + syscall_area], rsp
    mov rsp, [rip + syscall_area + 8]
    push {flat_ss}
    push [rip + syscall_area]
    push r11
    push {flat_cs}
    push rcx
    push 0
    mov dword ptr [rsp + 4], \number
    jmp guest_entry
.endm

.global syscall_long
syscall_long:
    syscall_stub 0x100
.global syscall_compatible
syscall_compatible:
    syscall_stub 0x101

.global load_selectors_or_null
load_selectors_or_null:
    xor eax, eax
20: mov ds, edi
21: mov es, esi
22: mov fs, edx
23: mov gs, ecx
    ret
24: mov eax, 1
    xor edi, edi
    jmp 20b
25: mov eax, 1
    xor esi, esi
    jmp 21b
26: mov eax, 1
    xor edx, edx
    jmp 22b
27: mov eax, 1
    xor ecx, ecx
    jmp 23b

.global load_gs_or_null
load_gs_or_null:
28: mov gs, edi
    ret
29: xor edi, edi
    jmp 28b

.section .fixups, "a"
    .quad return_to_guest, return_refused
    .quad 20b, 24b
    .quad 21b, 25b
    .quad 22b, 26b
    .quad 23b, 27b
    .quad 28b, 29b

.section .rodata.vectors, "a"
.balign 8
.global vector_table
vector_table:
.set n, 0
.rept 256
    vector_word %n
    .set n, n + 1
.endr
.noaltmacro
.text
