// The walk over a list of system calls, jail/calls.py; x0: first entry, x1: how many. as(1), aarch64.
run:
    mov x9, x0
    mov x10, x1
    mov x14, x0
    mov x15, x1
    mov x11, #0
next:
    cbz x10, done
    ldr x8, [x9]
    ldp x0, x1, [x9, #8]
    ldp x2, x3, [x9, #24]
    ldp x4, x5, [x9, #40]
    tbz x8, #32, direct
    ldr w0, [x0]
direct:
    mov w8, w8
    svc #0
    mov x11, x0
    ldr x12, [x9, #56]
    str x0, [x12]
    ldr x13, [x9]
    tbnz x0, #63, failed
    cbz x0, zero
    tbnz x13, #33, done
more:
    tbnz x13, #38, again
    add x9, x9, #64
    sub x10, x10, #1
    b next
again:
    mov x9, x14
    mov x10, x15
    b next
zero:
    tbnz x13, #36, done
    tbz x13, #37, more
    ldr x9, [x9, #48]
    ldr x10, [x9]
    add x9, x9, #64
    b next
failed:
    tbnz x13, #34, more
    tbnz x13, #35, die
done:
    mov x1, x11
    mov x0, x10
    ret
die:
    mov x0, #127
    mov x8, #94
    svc #0
