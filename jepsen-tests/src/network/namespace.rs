//! Network namespaces without names, and TUN devices in them, by system calls alone.
//!
//! Invariant: nothing here has a name that outlives its holders. A namespace lives as long as a process is in it or a
//! descriptor is open on it, a device as long as its descriptor or its namespace: however this process ends, also by
//! SIGKILL, the kernel takes both away.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;

/// linux/if_tun.h: TUNSETIFF, IFF_TUN without packet information.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUN: i16 = 0x0001 | 0x1000;
/// linux/if.h.
const UP: i16 = 0x1;
const RUNNING: i16 = 0x40;

/// A device to be: its name inside its namespace, its address in a network of 256, and its largest packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device {
    pub(super) name: &'static str,
    pub(super) address: Ipv4Addr,
    pub(super) mtu: i32,
}

/// Moves the calling thread into a new namespace, in which only loopback is up.
///
/// # Errors
/// When this process may not: that takes root.
pub(super) fn enter_new() -> anyhow::Result<OwnedFd> {
    // SAFETY: a plain system call; it concerns the calling thread alone.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) }).context("make a network namespace (root may)")?;
    bring_up("lo")?;
    Ok(File::open("/proc/thread-self/ns/net").context("hold the network namespace")?.into())
}

/// Runs `work` in a new namespace, on a thread of its own; gives the namespace too.
///
/// # Errors
/// As [`enter_new`], and those of `work`.
pub(super) fn in_new<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<(OwnedFd, T)> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = enter_new()?;
            Ok((namespace, work()?))
        });
        thread.join().unwrap_or_else(|_| anyhow::bail!("the thread that makes a network namespace panicked"))
    })
}

/// Makes a TUN device in the calling thread's namespace and brings it up. Whoever holds the descriptor is the wire: it
/// reads what the namespace sends, and writes what the namespace receives. Reads do not block.
///
/// # Errors
/// When the machine has no /dev/net/tun, or this process may not use it.
pub(super) fn tun(device: Device) -> anyhow::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let file: OwnedFd = file.context("open /dev/net/tun (the kernel module is `tun`)")?.into();
    let mut request = Request::new(device.name);
    request.set_i16(TUN);
    request.send(file.as_raw_fd(), TUNSETIFF).context("make a TUN device")?;
    let control = control()?;
    let set = |what: &str, code: u64, fill: &dyn Fn(&mut Request)| {
        let mut request = Request::new(device.name);
        fill(&mut request);
        request.send(control.as_raw_fd(), code as libc::Ioctl).with_context(|| format!("{what} of {}", device.name))
    };
    set("address", libc::SIOCSIFADDR, &|request| request.set_address(device.address))?;
    set("mask", libc::SIOCSIFNETMASK, &|request| request.set_address(Ipv4Addr::new(255, 255, 255, 0)))?;
    set("MTU", libc::SIOCSIFMTU, &|request| request.set_i32(device.mtu))?;
    bring_up(device.name)?;
    Ok(file)
}

fn bring_up(name: &str) -> anyhow::Result<()> {
    let mut request = Request::new(name);
    request.set_i16(UP | RUNNING);
    request.send(control()?.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl).with_context(|| format!("bring up {name}"))
}

/// Any socket: the kernel takes requests about devices through it.
fn control() -> anyhow::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("open a socket")
}

/// `struct ifreq`: a name of 16 bytes and a union of 24.
#[repr(C, align(8))]
struct Request([u8; 40]);

impl Request {
    fn new(name: &str) -> Self {
        let mut bytes = [0; 40];
        // One byte stays 0: the end of the name.
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self(bytes)
    }

    fn set_i16(&mut self, value: i16) {
        self.0[16..18].copy_from_slice(&value.to_ne_bytes());
    }

    fn set_i32(&mut self, value: i32) {
        self.0[16..20].copy_from_slice(&value.to_ne_bytes());
    }

    /// `struct sockaddr_in`: family, port, address.
    fn set_address(&mut self, address: Ipv4Addr) {
        self.0[16..18].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        self.0[20..24].copy_from_slice(&address.octets());
    }

    fn send(&mut self, to: RawFd, code: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every code used here takes a `struct ifreq`, and this is one, in size and alignment.
        checked(unsafe { libc::ioctl(to, code, self.0.as_mut_ptr()) })
    }
}

fn checked(code: libc::c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
