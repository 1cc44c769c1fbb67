# Init, jail/init.py: reads its list, walks it, then only waits; walk.x86_64.s follows. as(1), x86-64.
.intel_syntax noprefix
start:
    xor eax, eax
    xor edi, edi
    mov esi, 0x500000
    mov edx, 0x4000
    syscall
    test rax, rax
    jle leave
    mov edi, 0x500040
    mov esi, [0x500000]
    call run
    test rax, rax
    jnz report
pause:
    mov eax, 34
    syscall
    jmp pause
report:
    push rdx
    push rax
    mov rsi, rsp
    mov edx, 16
    mov edi, 1
    mov eax, 1
    syscall
leave:
    mov edi, 1
    mov eax, 231
    syscall
