# The Perl zygote: a Perl process in which an AGI script is compiled once, and which forks for each call.
#
#     perl [the options of the script's #! line] -IDIRECTORY -MFastAGIPool::Zygote SCRIPT
#
# Laws:
#   * A call sees what a fresh run of the script sees. What it cannot see the same is listed below.
#   * No module is loaded, and no variable changed, that the script did not load or change: hence no strict,
#     no warnings, no POSIX, no Socket; the system is asked by Perl's own syscall().
#   * It never runs the script itself, nor its END blocks: whatever happens, it ends by exit_group.
#   * Nothing is written but answers, and nothing kept of a call.
#
# How it works: -M compiles this file before the script, so its INIT block is the first of all INIT blocks.
# Perl comes to it when the script has been compiled. There we say which files are in it, and wait for calls on
# the socket whose descriptor is in $ENV{FASTAGI_POOL_ZYGOTE}. In each forked child the INIT block simply
# returns, and Perl goes on as always: with the script's own INIT blocks, and then its main program.
#
# Conversation (datagrams of NUL-separated byte strings):
#   we say    ready FILE...                            once: every file whose change needs a new zygote
#   we hear   run ARGC ARG... NAME=VALUE...            beside it standard input, output and error of the call
#   we say    pid NUMBER   or   error REASON
#   we hear   reap NUMBER                              this child has ended
#   we say    status NUMBER WAITSTATUS                 -1 if nobody knows
#
# What differs from a fresh run:
#   * BEGIN, UNITCHECK and CHECK blocks, and what modules do when they are loaded, happen once, with the
#     zygote's environment. What they print is repeated in each call; their warnings are not. A connection
#     that they open is shared by all calls; a file that they open for reading is not. They read an empty
#     standard input: a script that begins its dialogue there cannot be precompiled.
#   * srand is called afresh in each child, so that calls differ: one with a fixed seed in a BEGIN block is lost.
#   * Hashes have the same order in all calls of one zygote.
#   * With -CA, an argument that is not UTF-8 stays bytes, where Perl makes a malformed string of it.
#   * The command line that ps shows is the zygote's. The switch -s finds no arguments.

package FastAGIPool::Zygote;

# What every 64-bit Linux has in common. Source: include/uapi/asm-generic/fcntl.h, include/linux/socket.h.
sub O_CLOEXEC ()        { 02000000 }
sub F_GETFD ()          { 1 }
sub F_SETFD ()          { 2 }
sub F_GETFL ()          { 3 }
sub FD_CLOEXEC ()       { 1 }
sub O_ACCMODE ()        { 3 }
sub AT_FDCWD ()         { -100 }
sub SEEK_SET ()         { 0 }
sub SEEK_CUR ()         { 1 }
sub MSG_CMSG_CLOEXEC () { 0x40000000 }
sub SOL_SOCKET ()       { 1 }
sub SCM_RIGHTS ()       { 1 }
sub S_IFMT ()           { 0170000 }
sub S_IFREG ()          { 0100000 }
sub EINTR ()            { 4 }
# The longest datagram that we can hear; the same bound as in channel.py.
sub MAX_MESSAGE_BYTES () { 200_000 }
# The most that may be printed while the script is compiled: what a pipe holds. Source: pipe(7).
sub PIPE_BYTES ()      { 65_536 }
sub UNICODE_ARGV ()    { 32 }    # -CA. Source: perlrun
sub UNICODE_LOCALE ()  { 64 }    # -CL

# Small pieces of malloc are what scripts use; their sizes grow by steps. So many in a row that lie beyond the
# heap's old end say that none of a size is free before it.
sub MALLOC_STEP_BYTES () { 16 }
sub MALLOC_SIZES ()      { 128 }
sub MALLOC_BEYOND ()     { 4 }
# Beyond this a heap is stranger than we understand.
sub MOST_BALLAST ()      { 1_000_000 }

my $INC_NAME = 'FastAGIPool/Zygote.pm';
my ($SOCKET, $SCRIPT, $DIRECTORY, $TAINTED, $PRINTED, @ORIGINALS);
# What the kernel writes a message and its descriptors into.
my ($BYTES, $CONTROL) = ('', '');
# See _fill_the_heap.
my @BALLAST;
# Numbers of system calls on this machine.
my ($CLOSE, $DUP3, $EXIT_GROUP, $FCNTL, $LSEEK, $OPENAT, $RECVMSG, $WRITE);

sub import {
    _find_system_calls();
    $TAINTED = substr $^X, 0, 0;
    # Through a pattern: the number must not be tainted.
    defined $ENV{FASTAGI_POOL_ZYGOTE} && $ENV{FASTAGI_POOL_ZYGOTE} =~ /\A([0-9]+)\z/
        or die "FastAGIPool::Zygote: only fastagi_pool starts it: FASTAGI_POOL_ZYGOTE is not a descriptor\n";
    $SOCKET = $1 + 0;
    delete $ENV{FASTAGI_POOL_ZYGOTE};
    syscall($FCNTL, $SOCKET, F_SETFD, FD_CLOEXEC) == 0 or die "FastAGIPool::Zygote: its socket: $!\n";

    my $directory = substr $INC{$INC_NAME}, 0, -1 - length $INC_NAME;
    for my $index (0 .. $#INC) {
        next if ref $INC[$index] || $INC[$index] ne $directory;
        splice @INC, $index, 1;
        last;
    }
    delete $INC{$INC_NAME};
    $DIRECTORY = readlink '/proc/self/cwd';
    $SCRIPT = _absolute($0);
    _mark_standard_descriptors();
}

# Learn the numbers of the system calls.
# Source: arch/*/entry/syscalls/syscall.tbl and include/uapi/asm-generic/unistd.h; include/uapi/linux/elf-em.h.
sub _find_system_calls {
    open my $program, '<:raw', '/proc/self/exe' or die "FastAGIPool::Zygote: /proc/self/exe: $!\n";
    sysread $program, my $header, 20;
    close $program;
    my ($class, $order) = unpack 'x4 C C', $header;
    my $machine = unpack $order == 2 ? 'x18 n' : 'x18 v', $header;
    my %numbers_of = (
        #       close dup3 exit_group fcntl lseek openat recvmsg write
        62  => [3,   292, 231,       72,   8,    257,   47,     1],     # x86_64
        183 => [57,  24,  94,        25,   62,   56,    212,    64],    # aarch64
        243 => [57,  24,  94,        25,   62,   56,    212,    64],    # riscv64
        21  => [6,   316, 234,       55,   19,   286,   342,    4],     # ppc64, ppc64le
        22  => [6,   326, 248,       55,   19,   288,   372,    4],     # s390x
    );
    $class == 2 && $numbers_of{$machine}
        or die "FastAGIPool::Zygote: precompile: perl is not possible with this Perl: it needs a 64-bit one"
        . " for x86_64, aarch64, riscv64, ppc64 or s390x (this is ELF class $class, machine $machine)\n";
    ($CLOSE, $DUP3, $EXIT_GROUP, $FCNTL, $LSEEK, $OPENAT, $RECVMSG, $WRITE) = @{ $numbers_of{$machine} };
}

# Put files of our own on standard input and output, so that each copy of them that the script makes while
# it is compiled can be told from any other file, such as a /dev/null that it opened itself.
sub _mark_standard_descriptors {
    pipe my $nothing, my $nobody or die "FastAGIPool::Zygote: no pipe: $!\n";
    pipe $PRINTED, my $printer or die "FastAGIPool::Zygote: no pipe: $!\n";
    # Against -CD, which would have the pipe read characters.
    binmode $PRINTED;
    syscall($DUP3, fileno $nothing, 0, 0) == 0 or die "FastAGIPool::Zygote: standard input: $!\n";
    syscall($DUP3, fileno $printer, 1, 0) == 1 or die "FastAGIPool::Zygote: standard output: $!\n";
    @ORIGINALS = map { _identity($_) } 0 .. 2;
}

# Tell one open file from another: '' for a descriptor that is closed.
sub _identity {
    my @stat = stat "/proc/self/fd/$_[0]";
    return @stat ? "$stat[0],$stat[1]" : '';
}

sub _absolute {
    my ($path) = @_;
    return substr($path, 0, 1) eq '/' ? $path : "$DIRECTORY/$path";
}

INIT { _serve() }

# Be the zygote; return only in a child, which is ready to run the script.
sub _serve {
    local ($?, $_);
    my $errno = $! + 0;
    # A script may ignore its children, or await them all: we need to know how each of ours ended.
    local $SIG{ defined $SIG{CLD} ? 'CLD' : 'CHLD' } = 'DEFAULT';
    my $printed = _printed();
    my ($copies, $files) = _descriptors();
    my @files = map { _absolute($_) } grep { defined && !ref } values %INC;
    _fill_the_heap();
    _say('ready', $SCRIPT, @files);
    while (1) {
        my ($message, @received) = _hear();
        my ($kind, @fields) = split /\0/, $message, -1;
        if ($kind eq 'reap') {
            my $known = waitpid $fields[0], 0;
            _say('status', $fields[0], $known > 0 ? $? : -1);
            next;
        }
        if ($kind ne 'run' || @received != 3) {
            _say('error', 'the zygote was not asked properly');
        } elsif (!defined(my $pid = fork)) {
            _say('error', "cannot fork: $!");
        } elsif ($pid) {
            setpgrp $pid, $pid;
            _say('pid', $pid);
        } else {
            setpgrp 0, 0;
            _take_descriptors($copies, $files, \@received);
            _take_call(@fields);
            _write(1, $printed) if length $printed;
            srand;
            $^T = time;
            $! = $errno;
            return;
        }
        syscall $CLOSE, $_ for @received;
    }
}

# Allocate whatever memory is free among that of the compiled script, and keep it.
#
# The free pieces lie scattered, and each one that a call used would copy a page of the zygote: that was half of
# all the pages that a call copies. From now on calls find their memory in one place, at the end of the heap.
sub _fill_the_heap {
    my $end = _end_of_heap() or return;
    # From large to small: what is left of a large piece is a smaller one.
    for my $size (reverse map { $_ * MALLOC_STEP_BYTES } 1 .. MALLOC_SIZES) {
        my $beyond = 0;
        while ($beyond < MALLOC_BEYOND && @BALLAST < MOST_BALLAST) {
            vec($BALLAST[@BALLAST], $size - 1, 8) = 0;
            $beyond = unpack('J', pack 'P', $BALLAST[-1]) < $end ? 0 : $beyond + 1;
        }
    }
}

# Return the address at which the heap ends now.
sub _end_of_heap {
    open my $maps, '<', '/proc/self/maps' or return;
    my ($end) = map { /-([0-9a-f]+) .*\[heap\]/ ? hex $1 : () } <$maps>;
    close $maps;
    return $end;
}

# Take what the script printed while it was compiled.
sub _printed {
    # Setting $| flushes.
    my $selected = select STDOUT;
    my $flushing = $|;
    $| = 1;
    $| = $flushing;
    select $selected;
    vec(my $readable = '', fileno $PRINTED, 1) = 1;
    my $printed = '';
    sysread $PRINTED, $printed, PIPE_BYTES if select $readable, undef, undef, 0;
    close $PRINTED;
    return $printed;
}

# Find the open descriptors that each call needs anew.
#
# Returns a list of [descriptor, which standard descriptor it is a copy of, flags of dup3], and one of
# [descriptor, flags] of files that are open for reading: their positions would be shared by all calls. The
# DATA handles are among these.
sub _descriptors {
    my (@copies, @files);
    opendir my $open, '/proc/self/fd' or die "FastAGIPool::Zygote: /proc/self/fd: $!\n";
    for my $descriptor (sort grep { !/\D/ } readdir $open) {
        $descriptor = $1 + 0 if $descriptor =~ /(.*)/;
        my $identity = _identity($descriptor);
        next if $identity eq '';
        my $flags = syscall($FCNTL, $descriptor, F_GETFD, 0) & FD_CLOEXEC ? O_CLOEXEC : 0;
        if (my ($which) = grep { $ORIGINALS[$_] eq $identity } 0 .. 2) {
            push @copies, [$descriptor, $which, $flags];
        } elsif (((stat "/proc/self/fd/$descriptor")[2] & S_IFMT) == S_IFREG
            && !(syscall($FCNTL, $descriptor, F_GETFL, 0) & O_ACCMODE)) {
            push @files, [$descriptor, $flags];
        }
    }
    closedir $open;
    return \@copies, \@files;
}

# In the child: put the call's descriptors where the zygote's were. The handles that Perl has on them, and all
# that the script has done to these, stay as they are.
sub _take_descriptors {
    my ($copies, $files, $received) = @_;
    for my $copy (@$copies) {
        my ($descriptor, $which, $flags) = @$copy;
        syscall($DUP3, $received->[$which], $descriptor, $flags) == $descriptor
            or die "FastAGIPool::Zygote: descriptor $descriptor of the call: $!\n";
    }
    for my $file (@$files) {
        my ($descriptor, $flags) = @$file;
        my $own = syscall $OPENAT, AT_FDCWD, "/proc/self/fd/$descriptor", O_CLOEXEC, 0;
        my $position = syscall $LSEEK, $descriptor, 0, SEEK_CUR;
        $own >= 0
            && $position == syscall($LSEEK, $own, $position, SEEK_SET)
            && $descriptor == syscall($DUP3, $own, $descriptor, $flags)
            or die "FastAGIPool::Zygote: a file that was open at descriptor $descriptor: $!\n";
        syscall $CLOSE, $own;
    }
    syscall $CLOSE, $_ for @$received, $SOCKET;
}

# In the child: take arguments and environment, tainted as those of a fresh process.
sub _take_call {
    my ($count, @rest) = @_;
    @ARGV = map { $_ . $TAINTED } splice @rest, 0, $count;
    if (${^UNICODE} & UNICODE_ARGV && (${^UTF8LOCALE} || !(${^UNICODE} & UNICODE_LOCALE))) {
        utf8::decode($_) for @ARGV;
    }
    for my $variable (@rest) {
        my ($name, $value) = split /=/, $variable, 2;
        $ENV{$name} = $value . $TAINTED;
    }
}

sub _say {
    my $message = join "\0", @_;
    utf8::encode($message) if utf8::is_utf8($message);
    _write($SOCKET, $message);
}

# Write all of it, to a socket or a pipe.
sub _write {
    my $descriptor = $_[0];
    # Through a pattern: with -T, paths are tainted, and syscall refuses them.
    my ($bytes) = $_[1] =~ /\A(.*)\z/s;
    while (length $bytes) {
        my $written = syscall $WRITE, $descriptor, $bytes, length $bytes;
        if ($written < 0) {
            next if $! == EINTR;
            _leave(1) if $descriptor == $SOCKET;
            return;
        }
        substr $bytes, 0, $written, '';
    }
}

# Wait for a request: return its bytes and the descriptors beside it. At the end of the conversation: leave.
sub _hear {
    # vec, and not an assignment: the kernel writes into these, so nobody may share them with us. They are made
    # once: to touch so much fresh memory for each call would cost more than the call.
    vec($BYTES, MAX_MESSAGE_BYTES - 1, 8) = 0 if length $BYTES < MAX_MESSAGE_BYTES;
    vec($CONTROL, 63, 8) = 0 if length $CONTROL < 64;
    my $iovec = pack 'P J', $BYTES, MAX_MESSAGE_BYTES;
    # struct msghdr: name, its length, iovec, how many, control data, its length, flags.
    my $header = pack 'J L x4 P J P J L x4', 0, 0, $iovec, 1, $CONTROL, length $CONTROL, 0;
    my $length;
    do { $length = syscall $RECVMSG, $SOCKET, $header, MSG_CMSG_CLOEXEC } while $length < 0 && $! == EINTR;
    _leave(0) if $length <= 0;
    # How much control data came is written into the header. struct cmsghdr: length, level, kind; descriptors follow.
    my $came = unpack 'x40 J', $header;
    my ($size, $level, $kind) = unpack 'J l l', $CONTROL;
    my $rights = $came >= 16 && $size >= 16 && $level == SOL_SOCKET && $kind == SCM_RIGHTS;
    my @received = $rights ? unpack 'l*', substr $CONTROL, 16, $size - 16 : ();
    return substr($BYTES, 0, $length), @received;
}

# End the zygote at once, without the script's END blocks and destructors.
sub _leave { syscall $EXIT_GROUP, $_[0] }

1;
