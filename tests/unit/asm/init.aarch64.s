// Init, jail/init.py: reads its list, walks it, then only waits; walk.aarch64.s follows. as(1), aarch64.
start:
    mov x0, #0
    movz x1, #0x50, lsl #16
    mov x2, #0x4000
    mov x8, #63
    svc #0
    cmp x0, #0
    b.le leave
    movz x0, #0x50, lsl #16
    ldr x1, [x0]
    add x0, x0, #0x40
    bl run
    cbnz x0, report
pause:
    mov x0, #0
    mov x1, #0
    mov x2, #0
    mov x3, #0
    mov x8, #73
    svc #0
    b pause
report:
    stp x0, x1, [sp, #-16]!
    mov x1, sp
    mov x2, #16
    mov x0, #1
    mov x8, #64
    svc #0
leave:
    mov x0, #1
    mov x8, #94
    svc #0
