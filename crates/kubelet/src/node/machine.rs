//! What the kernel says about this machine.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use nix::sys::statvfs::statvfs;

#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: i64,
    pub(crate) swap_bytes: i64,
    pub(crate) disk_bytes: i64,
    /// Page size (`2Mi`) and total bytes.
    pub(crate) huge_pages: Vec<(String, i64)>,
    pub(crate) architecture: &'static str,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            cpus: 1,
            memory_bytes: 0,
            swap_bytes: 0,
            disk_bytes: 0,
            huge_pages: Vec::new(),
            architecture: architecture(),
            machine_id: String::new(),
            system_uuid: String::new(),
            boot_id: String::new(),
            kernel: String::new(),
            os_image: String::new(),
        }
    }
}

impl Machine {
    pub(crate) fn read(root_dir: &Path, node_ips: &[IpAddr]) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let memory = text("/proc/meminfo");
        let kibibytes = |name: &str| -> i64 {
            let line = memory.lines().find(|line| line.starts_with(name));
            line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
        };
        let disk = statvfs(root_dir)
            .map_or(0, |s| i64::try_from(s.blocks() * s.fragment_size()).unwrap_or(i64::MAX));
        let machine_id = text("/etc/machine-id");
        let system_uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            ips: if node_ips.is_empty() { vec![own_address()] } else { node_ips.to_vec() },
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kibibytes("MemTotal:") * 1024,
            swap_bytes: kibibytes("SwapTotal:") * 1024,
            disk_bytes: disk,
            huge_pages: huge_pages(),
            architecture: architecture(),
            system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
        }
    }
}

/// Go's name of the architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn os_image(release: &str) -> String {
    let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The address that packets to the outside would carry, or any that is not loopback. Connecting a datagram socket
/// sends nothing.
fn own_address() -> IpAddr {
    let routed = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    let routed = routed().ok().filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    routed.or_else(interface_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn interface_address() -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    let found: Vec<Ipv4Addr> =
        addresses.filter_map(|a| a.address.as_ref()?.as_sockaddr_in().map(|s| s.ip())).collect();
    found.into_iter().find(|ip| !ip.is_loopback()).map(IpAddr::V4)
}

fn huge_pages() -> Vec<(String, i64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .strip_prefix("hugepages-")
            .and_then(|n| n.strip_suffix("kB"))
            .and_then(|n| n.parse::<i64>().ok());
        let count = fs::read_to_string(entry.path().join("nr_hugepages"));
        let count = count.ok().and_then(|text| text.trim().parse::<i64>().ok());
        if let (Some(size), Some(count)) = (size, count) {
            found.push((crate::quantity::from_bytes(size * 1024).0, size * 1024 * count));
        }
    }
    found
}
