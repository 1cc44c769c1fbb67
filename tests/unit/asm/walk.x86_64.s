# The walk over a list of system calls, jail/calls.py; rdi: first entry, rsi: how many. as(1), x86-64.
.intel_syntax noprefix
run:
    push rbx
    push rbp
    push r12
    push r13
    mov rbx, rdi
    mov rbp, rsi
    mov r12, rdi
    mov r13, rsi
next:
    test rbp, rbp
    jz done
    mov rax, [rbx]
    mov rdi, [rbx+8]
    mov rsi, [rbx+16]
    mov rdx, [rbx+24]
    mov r10, [rbx+32]
    mov r8,  [rbx+40]
    mov r9,  [rbx+48]
    bt rax, 32
    jnc direct
    mov edi, [rdi]
direct:
    mov eax, eax
    syscall
    mov rcx, [rbx+56]
    mov [rcx], rax
    mov rcx, [rbx]
    test rax, rax
    js failed
    jz zero
    bt rcx, 33
    jc done
more:
    bt rcx, 38
    jc again
    add rbx, 64
    dec rbp
    jmp next
again:
    mov rbx, r12
    mov rbp, r13
    jmp next
zero:
    bt rcx, 36
    jc done
    bt rcx, 37
    jnc more
    mov rbx, [rbx+48]
    mov rbp, [rbx]
    add rbx, 64
    jmp next
failed:
    bt rcx, 34
    jc more
    bt rcx, 35
    jc die
done:
    mov rdx, rax
    mov rax, rbp
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
die:
    mov edi, 127
    mov eax, 231
    syscall
