"""The system calls that exist and are refused with EPERM, as data: reason and numbers (x86_64, aarch64).

A call that is in neither this list nor `policy.ALLOW` is answered ENOSYS.  These get EPERM because a program that asks for them
should learn that it may not, rather than try another way to the same thing.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: str
    calls: dict[str, tuple[int | None, int | None]]


REFUSE: Final[tuple[Refuse, ...]] = (
    Refuse(
        "tracing and reading other processes",
        {
            "ptrace": (101, 117),
            "process_vm_readv": (310, 270),
            "process_vm_writev": (311, 271),
            "kcmp": (312, 272),
            "pidfd_getfd": (438, 438),
            "process_madvise": (440, 440),
            "process_mrelease": (448, 448),
        },
    ),
    Refuse(
        "mounts and roots: the sandbox's tree is fixed",
        {
            "mount": (165, 40),
            "umount2": (166, 39),
            "pivot_root": (155, 41),
            "chroot": (161, 51),
            "open_tree": (428, 428),
            "move_mount": (429, 429),
            "fsopen": (430, 430),
            "fsconfig": (431, 431),
            "fsmount": (432, 432),
            "fspick": (433, 433),
            "mount_setattr": (442, 442),
            "open_tree_attr": (467, 467),
        },
    ),
    Refuse(
        "namespaces: a nested user namespace would give capabilities over kernel code",
        {
            "unshare": (272, 97),
            "setns": (308, 268),
        },
    ),
    Refuse(
        "kernel programs, profiling and hooks into other code",
        {
            "bpf": (321, 280),
            "perf_event_open": (298, 241),
            "userfaultfd": (323, 282),
            "seccomp": (317, 277),
        },
    ),
    Refuse(
        "keyrings are shared by uid, not by sandbox",
        {
            "add_key": (248, 217),
            "request_key": (249, 218),
            "keyctl": (250, 219),
        },
    ),
    Refuse(
        "modules, boot, swap, accounting, log: the host's",
        {
            "init_module": (175, 105),
            "finit_module": (313, 273),
            "delete_module": (176, 106),
            "create_module": (174, None),
            "get_kernel_syms": (177, None),
            "query_module": (178, None),
            "kexec_load": (246, 104),
            "kexec_file_load": (320, 294),
            "reboot": (169, 142),
            "swapon": (167, 224),
            "swapoff": (168, 225),
            "acct": (163, 89),
            "syslog": (103, 116),
            "quotactl": (179, 60),
            "quotactl_fd": (443, 443),
            "vhangup": (153, 58),
            "_sysctl": (156, None),
            "nfsservctl": (180, 42),
            "lookup_dcookie": (212, 18),
            "sysfs": (139, None),
            "ustat": (136, None),
            "uselib": (134, None),
        },
    ),
    Refuse(
        "identity is fixed; who changes it wants more than it has",
        {
            "setuid": (105, 146),
            "setgid": (106, 144),
            "setreuid": (113, 145),
            "setregid": (114, 143),
            "setresuid": (117, 147),
            "setresgid": (119, 149),
            "setfsuid": (122, 151),
            "setfsgid": (123, 152),
            "setgroups": (116, 159),
            "capset": (126, 91),
            "capget": (125, 90),
        },
    ),
    Refuse(
        "ownership is fixed: all files belong to the one user of the sandbox",
        {
            "chown": (92, None),
            "lchown": (94, None),
            "fchown": (93, 55),
            "fchownat": (260, 54),
        },
    ),
    Refuse(
        "names and clocks of the machine",
        {
            "sethostname": (170, 161),
            "setdomainname": (171, 162),
            "settimeofday": (164, 170),
            "clock_settime": (227, 112),
            "adjtimex": (159, 171),
            "clock_adjtime": (305, 266),
        },
    ),
    Refuse(
        "raw hardware and legacy segments",
        {
            "iopl": (172, None),
            "ioperm": (173, None),
            "modify_ldt": (154, None),
            "set_thread_area": (205, None),
            "get_thread_area": (211, None),
        },
    ),
    Refuse(
        "another system's behaviour, address layout",
        {
            "personality": (135, 92),
            "remap_file_pages": (216, 234),
        },
    ),
    Refuse(
        "file handles go around path checks; watching the whole file system",
        {
            "name_to_handle_at": (303, 264),
            "open_by_handle_at": (304, 265),
            "fanotify_init": (300, 262),
            "fanotify_mark": (301, 263),
            "inotify_init": (253, None),
            "inotify_init1": (294, 26),
            "inotify_add_watch": (254, 27),
            "inotify_rm_watch": (255, 28),
        },
    ),
    Refuse(
        "System V and POSIX queues: memory that outlives the process, limits by uid",
        {
            "shmget": (29, 194),
            "shmat": (30, 196),
            "shmctl": (31, 195),
            "shmdt": (67, 197),
            "semget": (64, 190),
            "semop": (65, 193),
            "semctl": (66, 191),
            "semtimedop": (220, 192),
            "msgget": (68, 186),
            "msgsnd": (69, 189),
            "msgrcv": (70, 188),
            "msgctl": (71, 187),
            "mq_open": (240, 180),
            "mq_unlink": (241, 181),
            "mq_timedsend": (242, 182),
            "mq_timedreceive": (243, 183),
            "mq_notify": (244, 184),
            "mq_getsetattr": (245, 185),
        },
    ),
    Refuse(
        "processors and priorities are assigned by the host",
        {
            "sched_setaffinity": (203, 122),
            "sched_setscheduler": (144, 119),
            "sched_setparam": (142, 118),
            "sched_setattr": (314, 274),
            "sched_getscheduler": (145, 120),
            "sched_getparam": (143, 121),
            "sched_getattr": (315, 275),
            "sched_get_priority_max": (146, 125),
            "sched_get_priority_min": (147, 126),
            "sched_rr_get_interval": (148, 127),
            "setpriority": (141, 140),
            "getpriority": (140, 141),
            "ioprio_set": (251, 30),
            "ioprio_get": (252, 31),
        },
    ),
    Refuse(
        "where memory lies is the host's; pinned memory cannot be reclaimed; page cache of others shows through mincore",
        {
            "mbind": (237, 235),
            "set_mempolicy": (238, 237),
            "get_mempolicy": (239, 236),
            "set_mempolicy_home_node": (450, 450),
            "migrate_pages": (256, 238),
            "move_pages": (279, 239),
            "mlock": (149, 228),
            "mlock2": (325, 284),
            "munlock": (150, 229),
            "mlockall": (151, 230),
            "munlockall": (152, 231),
            "mincore": (27, 232),
        },
    ),
    Refuse(
        "queued signals are charged to the uid; lists of locks are their owner's",
        {
            "rt_sigqueueinfo": (129, 138),
            "rt_tgsigqueueinfo": (297, 240),
            "get_robust_list": (274, 100),
        },
    ),
    Refuse(
        "page-cache pages handed to pipes and sockets (Dirty Pipe, Copy Fail); copying has a plain way",
        {
            "splice": (275, 76),
            "tee": (276, 77),
            "vmsplice": (278, 75),
        },
    ),
    Refuse(
        "flushing all disks slows every tenant",
        {
            "sync": (162, 81),
            "syncfs": (306, 267),
            "sync_file_range": (277, 84),
        },
    ),
)
