//! Services: their addresses and ports are theirs alone.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use meta::field::{FieldError, FieldPath};
use meta::names::GroupResource;
use serde_json::{Value, json};

use super::{default_field, default_text, items};
use crate::objects::ObjectExt;
use crate::registry::strategy::{Reservation, Strategy, WriteContext};
use crate::status::ApiError;

const CLIENT_IP_TIMEOUT_SECONDS: i64 = 10_800;
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Random picks before the range is searched in order.
const RANDOM_TRIES: usize = 64;

/// A range of addresses, first and last usable.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u128,
    last: u128,
    v4: bool,
}

/// Addresses and ports in use.
#[derive(Debug, Default)]
struct Used {
    /// Read off the services at first use, then kept.
    known: bool,
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
}

#[derive(Debug)]
pub struct ServiceStrategy {
    range: Option<Range>,
    used: Arc<Mutex<Used>>,
}

/// What one write took and gives back if it is abandoned.
struct Taken {
    used: Arc<Mutex<Used>>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    /// What the old object had and the new one does not.
    released: (Vec<IpAddr>, Vec<u16>),
    committed: bool,
}

impl ServiceStrategy {
    /// `cidrs` as in `--service-cluster-ip-range`; the first is used.
    pub fn new(cidrs: &[String]) -> Self {
        Self { range: cidrs.first().and_then(|cidr| Range::parse(cidr)), used: Arc::default() }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().expect("no panic happens under this lock")
    }

    fn learn(&self, cx: &WriteContext<'_>, used: &mut Used) {
        if used.known {
            return;
        }
        for service in cx.objects.list(&GroupResource::new("", "services"), None) {
            used.addresses.extend(addresses(&service));
            used.ports.extend(node_ports(&service));
        }
        used.known = true;
    }

    fn take_address(&self, used: &mut Used, wanted: &str) -> Result<IpAddr, String> {
        let Some(range) = self.range else { return Err("no service address range is set".to_owned()) };
        if !wanted.is_empty() {
            let address: IpAddr = wanted.parse().map_err(|_| "must be a valid IP address".to_owned())?;
            if !range.contains(address) {
                return Err(format!(
                    "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                    range.print()
                ));
            }
            if !used.addresses.insert(address) {
                return Err(format!("failed to allocate IP {address}: provided IP is already allocated"));
            }
            return Ok(address);
        }
        let size = range.last - range.first + 1;
        let random = (0..RANDOM_TRIES).map(|_| range.first + rand::random::<u128>() % size);
        let free = random.chain(range.first..=range.last).map(|own| range.address(own));
        // The first address of the range is the API server's.
        let reserved = range.address(range.first);
        let free = free.filter(|own| *own != reserved).find(|own| !used.addresses.contains(own));
        let address = free.ok_or_else(|| "failed to allocate a serviceIP: range is full".to_owned())?;
        used.addresses.insert(address);
        Ok(address)
    }
}

#[async_trait]
impl Strategy for ServiceStrategy {
    fn default(&self, service: &mut Value) {
        let spec = &mut service["spec"];
        default_text(spec, "sessionAffinity", "None");
        if spec["sessionAffinity"] == "None" {
            spec.as_object_mut().map(|spec| spec.remove("sessionAffinityConfig"));
        } else {
            let config = &mut spec["sessionAffinityConfig"]["clientIP"];
            default_field(config, "timeoutSeconds", CLIENT_IP_TIMEOUT_SECONDS);
        }
        default_text(spec, "type", "ClusterIP");
        for port in items(spec, "ports") {
            default_text(port, "protocol", "TCP");
            let unset = port.get("targetPort").is_none_or(|own| *own == 0 || *own == "");
            if unset {
                port["targetPort"] = port["port"].clone();
            }
        }
        let kind = spec["type"].as_str().unwrap_or_default().to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            default_text(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            default_field(spec, "allocateLoadBalancerNodePorts", true);
        }
        if kind != "ExternalName" {
            default_text(spec, "internalTrafficPolicy", "Cluster");
        }
    }

    fn prepare_for_create(&self, _cx: &WriteContext<'_>, service: &mut Value) {
        service["status"] = json!({ "loadBalancer": {} });
        complete_families(service);
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, service: &mut Value, old: &Value) {
        if cx.subresource == "status" {
            return;
        }
        let kind = service.str_at(&["spec", "type"]).to_owned();
        let spec = &mut service["spec"];
        if kind == "ExternalName" {
            if let Some(spec) = spec.as_object_mut() {
                for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    spec.remove(field);
                }
            }
            return;
        }
        // A client that leaves out what the server chose keeps it.
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let empty = spec.get(field).is_none_or(|own| own.is_null() || *own == "" || *own == json!([]));
            if let (true, Some(value)) = (empty, old.at(&["spec", field])) {
                spec[field] = value.clone();
            }
        }
        if kind == "ClusterIP" {
            items(spec, "ports").for_each(|port| {
                port.as_object_mut().map(|port| port.remove("nodePort"));
            });
            if let Some(spec) = spec.as_object_mut() {
                for field in ["externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts"]
                {
                    spec.remove(field);
                }
            }
        } else {
            keep_node_ports(spec, old);
        }
        complete_families(service);
    }

    fn validate(&self, _cx: &WriteContext<'_>, service: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = FieldPath::root("spec");
        let headless = service.str_at(&["spec", "clusterIP"]) == "None";
        let kind = service.str_at(&["spec", "type"]);
        let ports = service.at(&["spec", "ports"]).and_then(Value::as_array);
        if ports.is_none_or(Vec::is_empty) && !headless && kind != "ExternalName" {
            errors.push(FieldError::required(&spec.child("ports"), ""));
        }
        let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        if !known.contains(&kind) {
            errors.push(FieldError::not_supported(&spec.child("type"), kind, &known));
        }
        if kind == "ExternalName" && service.str_at(&["spec", "externalName"]).is_empty() {
            errors.push(FieldError::required(&spec.child("externalName"), ""));
        }
        errors.extend(validate_ports(ports, &spec.child("ports")));
        errors
    }

    fn name_errors(&self, name: &str) -> Vec<String> {
        meta::content::dns1035_label(name)
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    async fn reserve(
        &self,
        cx: &WriteContext<'_>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reservation>>, ApiError> {
        if !cx.subresource.is_empty() {
            return Ok(None);
        }
        let (had_addresses, had_ports) =
            old.map_or_else(Default::default, |old| (addresses(old), node_ports(old)));
        let mut used = self.used();
        self.learn(cx, &mut used);
        let mut taken = Taken {
            used: Arc::clone(&self.used),
            addresses: Vec::new(),
            ports: Vec::new(),
            released: Default::default(),
            committed: false,
        };
        let result = self.take(service, &mut used, &mut taken, &had_addresses, &had_ports);
        drop(used);
        result.map_err(|error| {
            let kind = meta::names::GroupVersionKind::new("", "v1", "Service");
            ApiError::invalid(&kind, service.name(), &[error])
        })?;
        taken.released.0 =
            had_addresses.into_iter().filter(|own| !addresses(service).contains(own)).collect();
        taken.released.1 = had_ports.into_iter().filter(|own| !node_ports(service).contains(own)).collect();
        Ok(Some(Box::new(taken)))
    }

    fn after_delete(&self, service: &Value) {
        let mut used = self.used();
        for address in addresses(service) {
            used.addresses.remove(&address);
        }
        for port in node_ports(service) {
            used.ports.remove(&port);
        }
    }
}

impl ServiceStrategy {
    fn take(
        &self,
        service: &mut Value,
        used: &mut Used,
        taken: &mut Taken,
        had_addresses: &[IpAddr],
        had_ports: &[u16],
    ) -> Result<(), FieldError> {
        let kind = service.str_at(&["spec", "type"]).to_owned();
        let wanted = service.str_at(&["spec", "clusterIP"]).to_owned();
        let kept = wanted.parse().is_ok_and(|own: IpAddr| had_addresses.contains(&own));
        if kind != "ExternalName" && wanted != "None" && !kept {
            let path = FieldPath::root("spec").child("clusterIPs");
            let address = self
                .take_address(used, &wanted)
                .map_err(|why| FieldError::invalid(&path, json!([wanted]), why))?;
            taken.addresses.push(address);
            service["spec"]["clusterIP"] = address.to_string().into();
            service["spec"]["clusterIPs"] = json!([address.to_string()]);
        }
        let allocates = service.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&json!(false));
        if kind == "NodePort" || (kind == "LoadBalancer" && allocates) {
            for (index, port) in items(&mut service["spec"], "ports").enumerate() {
                let path = FieldPath::root("spec").child("ports").index(index).child("nodePort");
                take_port(port, "nodePort", &path, used, taken, had_ports)?;
            }
        }
        if kind == "LoadBalancer" && service.str_at(&["spec", "externalTrafficPolicy"]) == "Local" {
            let path = FieldPath::root("spec").child("healthCheckNodePort");
            take_port(&mut service["spec"], "healthCheckNodePort", &path, used, taken, had_ports)?;
        }
        Ok(())
    }
}

fn take_port(
    holder: &mut Value,
    field: &str,
    path: &FieldPath,
    used: &mut Used,
    taken: &mut Taken,
    had: &[u16],
) -> Result<(), FieldError> {
    let wanted =
        holder.get(field).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    // One number may serve two protocols of one service.
    if wanted != 0 && (had.contains(&wanted) || taken.ports.contains(&wanted)) {
        return Ok(());
    }
    let port = if wanted == 0 {
        let span = NODE_PORTS.end() - NODE_PORTS.start() + 1;
        let random = (0..RANDOM_TRIES).map(|_| NODE_PORTS.start() + rand::random::<u16>() % span);
        random
            .chain(NODE_PORTS)
            .find(|port| !used.ports.contains(port))
            .ok_or_else(|| FieldError::invalid(path, 0, "failed to allocate a nodePort: range is full"))?
    } else if NODE_PORTS.contains(&wanted) {
        wanted
    } else {
        let detail = "provided port is not in the valid range. The range of valid ports is 30000-32767";
        return Err(FieldError::invalid(path, wanted, detail));
    };
    if !used.ports.insert(port) {
        return Err(FieldError::invalid(path, port, "provided port is already allocated"));
    }
    taken.ports.push(port);
    holder[field] = port.into();
    Ok(())
}

impl Reservation for Taken {
    fn commit(mut self: Box<Self>) {
        self.committed = true;
        let mut used = self.used.lock().expect("no panic happens under this lock");
        for address in &self.released.0 {
            used.addresses.remove(address);
        }
        for port in &self.released.1 {
            used.ports.remove(port);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let mut used = self.used.lock().expect("no panic happens under this lock");
        for address in &self.addresses {
            used.addresses.remove(address);
        }
        for port in &self.ports {
            used.ports.remove(port);
        }
    }
}

/// Node ports that the client left out stay with the port they were given to.
fn keep_node_ports(spec: &mut Value, old: &Value) {
    let before = old.at(&["spec", "ports"]).and_then(Value::as_array).cloned().unwrap_or_default();
    for port in items(spec, "ports") {
        if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) != 0 {
            continue;
        }
        let same =
            before.iter().find(|own| own["port"] == port["port"] && own["protocol"] == port["protocol"]);
        if let Some(number) = same.and_then(|own| own.get("nodePort")) {
            port["nodePort"] = number.clone();
        }
    }
}

fn complete_families(service: &mut Value) {
    if service.str_at(&["spec", "type"]) == "ExternalName" {
        return;
    }
    let spec = &mut service["spec"];
    let first = spec
        .get("clusterIPs")
        .and_then(|own| own.get(0))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    default_text(spec, "clusterIP", &first);
    let address = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    if spec["clusterIP"] == "" {
        spec.as_object_mut().map(|spec| spec.remove("clusterIP"));
    } else {
        default_field(spec, "clusterIPs", json!([address]));
    }
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    default_field(spec, "ipFamilies", json!([family]));
    default_text(spec, "ipFamilyPolicy", "SingleStack");
}

fn validate_ports(ports: Option<&Vec<Value>>, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = HashSet::new();
    let many = ports.is_some_and(|ports| ports.len() > 1);
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let name = port.str_at(&["name"]);
        if name.is_empty() {
            if many {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
        } else {
            for text in meta::content::dns1123_label(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, text));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        if !(1..=65_535).contains(&number) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(&path.child("port"), number, detail));
        }
        let protocols = ["SCTP", "TCP", "UDP"];
        let protocol = port.str_at(&["protocol"]);
        if !protocols.contains(&protocol) {
            errors.push(FieldError::not_supported(&path.child("protocol"), protocol, &protocols));
        }
    }
    errors
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let list = service.at(&["spec", "clusterIPs"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|own| own.as_str()?.parse().ok()).collect()
}

fn node_ports(service: &Value) -> Vec<u16> {
    let ports = service.at(&["spec", "ports"]).and_then(Value::as_array).into_iter().flatten();
    let numbers = ports.filter_map(|port| port.get("nodePort")?.as_u64());
    let health = service.at(&["spec", "healthCheckNodePort"]).and_then(Value::as_u64);
    numbers.chain(health).filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect()
}

impl Range {
    fn parse(cidr: &str) -> Option<Self> {
        let (base, bits) = cidr.split_once('/')?;
        let bits: u32 = bits.parse().ok()?;
        let (base, width, v4): (u128, u32, bool) = match base.parse().ok()? {
            IpAddr::V4(base) => (u128::from(base.to_bits()), 32, true),
            IpAddr::V6(base) => (base.to_bits(), 128, false),
        };
        // Upstream uses at most 2^16 addresses of a v6 range.
        let host_bits = width.checked_sub(bits)?.min(if v4 { 32 } else { 16 });
        let size = 1u128 << host_bits;
        let base = base & !(size - 1);
        (size >= 4).then_some(Self { first: base + 1, last: base + size - 2, v4 })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let (bits, v4) = match address {
            IpAddr::V4(own) => (u128::from(own.to_bits()), true),
            IpAddr::V6(own) => (own.to_bits(), false),
        };
        v4 == self.v4 && (self.first..=self.last).contains(&bits)
    }

    fn address(&self, bits: u128) -> IpAddr {
        match u32::try_from(bits) {
            Ok(bits) if self.v4 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    fn print(&self) -> String {
        let size = (self.last - self.first + 3).trailing_zeros();
        let bits = if self.v4 { 32 } else { 128 } - size;
        format!("{}/{bits}", self.address(self.first - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_print_as_they_were_given() {
        for cidr in ["10.96.0.0/12", "10.0.0.0/24"] {
            assert_eq!(Range::parse(cidr).map(|range| range.print()), Some(cidr.to_owned()));
        }
        assert!(Range::parse("10.0.0.0/32").is_none());
    }

    #[test]
    fn an_address_is_given_once() {
        let strategy = ServiceStrategy::new(&["10.0.0.0/29".to_owned()]);
        let mut used = Used { known: true, ..Used::default() };
        let mut seen = HashSet::new();
        while let Ok(address) = strategy.take_address(&mut used, "") {
            assert!(seen.insert(address));
        }
        // Eight addresses less network, broadcast and the API server's own.
        assert_eq!(seen.len(), 5);
        assert!(strategy.take_address(&mut used, "10.0.0.2").is_err());
    }
}
