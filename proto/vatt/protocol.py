"""Numbers of the wire that both sides must agree on. vatt.proto says what they mean."""

# The versions of the wire that this package speaks.
MIN_VERSION = 1
MAX_VERSION = 1

ERROR_DOMAIN = "vatt"  # of google.rpc.ErrorInfo

MAX_PAGES_PER_LEASE = 1 << 20
MAX_RUNS_PER_MESSAGE = 1 << 16
# Of an answer, and of what is asked: to read the latter costs the daemon time before it knows who asks.
MAX_MESSAGE_BYTES = 16 << 20
MAX_REQUEST_BYTES = 4 << 20
# For each figure of a usage report: more than a process has addresses for, and sums of thousands still fit an int64.
MAX_USAGE_BYTES = 1 << 48

# Of a tenant's share beyond the mins, beside the others' (Guarantee.weight).
MAX_WEIGHT = 1000

# A generation's lower bits count one vattd's leases; above them is its incarnation.
GENERATION_BITS = 32

# The kernel's SCM_MAX_FD.
MAX_FDS_PER_PACKET = 253
MAX_HANDLE_PACKET_BYTES = 16 << 10
