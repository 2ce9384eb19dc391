//! The system calls that have no safe wrapper elsewhere.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::unistd::ForkResult;

/// A handle on a process.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and answers a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks this process, which must have one thread only: then the child may do all its parent may.
pub(super) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: supervisors never make a thread, so no lock can be held by one that is not there.
    unsafe { nix::unistd::fork() }
}

/// Puts signals back to what a new program expects; the standard library ignores `SIGPIPE`.
pub(super) fn reset_signals() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    for number in [Signal::SIGPIPE, Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the default handler runs no code of this program.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Has the kernel reap this process's children by itself.
pub(super) fn ignore_children() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal runs no code of this program.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map(drop)
}

/// Ends the process without running anything registered for its end: for forked children.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns, and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Makes a terminal the session's own.
pub(super) fn set_controlling_terminal(fd: &impl AsFd) -> nix::Result<()> {
    // SAFETY: the request takes an integer.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Tells a terminal its size.
pub(super) fn set_window_size(fd: &impl AsFd, columns: u16, rows: u16) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one `winsize`, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result).map(drop)
}

/// Opens the other end of a terminal whose master is given.
pub(super) fn open_terminal_peer(master: &impl AsFd) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes an integer and answers a new descriptor or -1.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    nix::errno::Errno::result(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Allows the other end of a terminal to be opened.
pub(super) fn unlock_terminal(master: &impl AsFd) -> nix::Result<()> {
    let unlock: libc::c_int = 0;
    // SAFETY: the request reads one integer, which outlives the call.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    nix::errno::Errno::result(result).map(drop)
}

/// Brings the loopback interface of this process's network namespace up.
pub(super) fn loopback_up() -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero `ifreq` is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).unwrap_or_default();
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).unwrap_or_default();
    // SAFETY: the request reads one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    nix::errno::Errno::result(result).map(drop)
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: libc::c_uint) -> nix::Result<()> {
    // SAFETY: only called where nothing above `first` is used again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Takes a descriptor that came over a socket.
pub(super) fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel made the descriptor for us and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
