//! Which addresses host-local hands out: the arithmetic of containernetworking/plugins,
//! `plugins/ipam/host-local/backend/allocator/{range,range_set,allocator}.go`. A real test exhausts ranges with
//! Debian's binary.
//!
//! Without `rangeStart` a range begins behind the network's own address, and without `rangeEnd` it ends before the
//! broadcast address (IPv4) or with the last address (IPv6). Whoever gives these may give the network's and the
//! broadcast address: they are then handed out. The gateway, the first address behind the network's unless it is given,
//! is left out of its own range and of no other.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses in a row, without the gateway if that is among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    v6: bool,
    first: u128,
    last: u128,
    gateway: Option<u128>,
}

/// Ranges of which a pod gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeSet(Vec<Range>);

/// A range as a configuration gives it. Empty is not given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given<'a> {
    pub(super) subnet: &'a str,
    pub(super) range_start: &'a str,
    pub(super) range_end: &'a str,
    pub(super) gateway: &'a str,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// As Go reads an address: one of IPv4 that is written as one of IPv6 is one of IPv4.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

impl Range {
    /// # Errors
    /// In words, why host-local would refuse it.
    pub(super) fn new(given: Given<'_>) -> Result<Self, String> {
        let (network, length) = given.subnet.split_once('/').ok_or_else(|| format!("no subnet: {:?}", given.subnet))?;
        let network = address(network).ok_or_else(|| format!("no subnet: {:?}", given.subnet))?;
        let (v6, bits) = (network.is_ipv6(), if network.is_ipv6() { 128 } else { 32 });
        let length: u32 = length.parse().map_err(|_| format!("no subnet: {:?}", given.subnet))?;
        if length > bits - 2 {
            return Err(format!("{} is too small", given.subnet));
        }
        let hosts = (u128::MAX >> (128 - bits)).checked_shr(length).unwrap_or(0);
        let network = number(network);
        if network & hosts != 0 {
            return Err(format!("{} has host bits set", given.subnet));
        }
        let inside = |name: &str, text: &str| {
            let address = address(text).ok_or_else(|| format!("{name} is no address: {text:?}"))?;
            let within = address.is_ipv6() == v6 && number(address) & !hosts == network;
            within.then(|| number(address)).ok_or_else(|| format!("{name} {text} is not in {}", given.subnet))
        };
        let first = match given.range_start {
            "" => network + 1,
            text => inside("rangeStart", text)?,
        };
        let last = match given.range_end {
            "" => network + hosts - u128::from(!v6),
            text => inside("rangeEnd", text)?,
        };
        if first > last {
            return Err(format!("the range of {} ends before it begins", given.subnet));
        }
        let gateway = match given.gateway {
            "" => Some(network + 1),
            // One of the other family is nobody's.
            text => {
                let gateway = address(text).ok_or_else(|| format!("gateway is no address: {text:?}"))?;
                (gateway.is_ipv6() == v6).then(|| number(gateway))
            }
        };
        Ok(Range { v6, first, last, gateway: gateway.filter(|gateway| (first..=last).contains(gateway)) })
    }

    fn hands_out(&self, address: IpAddr) -> bool {
        let it = number(address);
        address.is_ipv6() == self.v6 && (self.first..=self.last).contains(&it) && self.gateway != Some(it)
    }

    fn size(&self) -> u128 {
        self.last - self.first + u128::from(self.gateway.is_none())
    }
}

impl RangeSet {
    /// # Errors
    /// In words, why host-local would refuse it.
    pub(super) fn new(ranges: Vec<Range>) -> Result<Self, String> {
        let overlap = |(index, one): (usize, &Range)| {
            ranges[..index]
                .iter()
                .any(|other| one.v6 != other.v6 || (one.first <= other.last && other.first <= one.last))
        };
        if ranges.is_empty() || ranges.iter().enumerate().any(overlap) {
            return Err("a range set is empty, of both families, or overlaps itself".to_owned());
        }
        Ok(RangeSet(ranges))
    }

    /// True if host-local might hand out this address.
    pub(super) fn hands_out(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.hands_out(address))
    }

    /// How many addresses it might hand out.
    pub(super) fn size(&self) -> u128 {
        self.0.iter().map(Range::size).sum()
    }
}

impl fmt::Display for RangeSet {
    /// As in host-local's own errors: `no IP addresses available in range set: 10.1.2.1-10.1.2.6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let text = |it: u128| match range.v6 {
                true => IpAddr::V6(Ipv6Addr::from_bits(it)),
                false => IpAddr::V4(Ipv4Addr::from_bits(it as u32)),
            };
            write!(f, "{comma}{}-{}", text(range.first), text(range.last))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, range_start: &str, range_end: &str, gateway: &str) -> Result<Range, String> {
        Range::new(Given { subnet, range_start, range_end, gateway })
    }

    fn all(range: Range) -> (u128, String, Vec<String>) {
        let set = RangeSet::new(vec![range]).unwrap();
        let v4 = (0..8).map(|n| IpAddr::V4(Ipv4Addr::new(10, 1, 2, n)));
        let v6 = (0..8).map(|n| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)));
        let handed_out = v4.chain(v6).filter(|address| set.hands_out(*address));
        let last = |address: IpAddr| address.to_string().rsplit(['.', ':']).next().unwrap().to_owned();
        (set.size(), set.to_string(), handed_out.map(last).collect())
    }

    /// What Debian's host-local 1.1.1 did with each.
    #[test]
    fn what_host_local_hands_out() {
        let of = |subnet, start, end, gateway| {
            let (size, text, addresses) = all(range(subnet, start, end, gateway).unwrap());
            assert_eq!(size, addresses.len() as u128, "{text}");
            format!("{text}: {}", addresses.join(" "))
        };
        assert_eq!(of("10.1.2.0/29", "", "", ""), "10.1.2.1-10.1.2.6: 2 3 4 5 6");
        assert_eq!(of("10.1.2.0/29", "", "", "10.1.2.6"), "10.1.2.1-10.1.2.6: 1 2 3 4 5");
        assert_eq!(of("10.1.2.0/29", "", "", "10.9.9.9"), "10.1.2.1-10.1.2.6: 1 2 3 4 5 6");
        assert_eq!(of("10.1.2.0/29", "", "", "fd00::1"), "10.1.2.1-10.1.2.6: 1 2 3 4 5 6");
        assert_eq!(of("10.1.2.0/29", "10.1.2.3", "10.1.2.4", ""), "10.1.2.3-10.1.2.4: 3 4");
        assert_eq!(of("10.1.2.0/30", "", "10.1.2.3", ""), "10.1.2.1-10.1.2.3: 2 3", "the broadcast address");
        assert_eq!(of("10.1.2.0/30", "10.1.2.0", "", ""), "10.1.2.0-10.1.2.2: 0 2", "the network's address");
        assert_eq!(of("fd00::/125", "", "", ""), "fd00::1-fd00::7: 2 3 4 5 6 7");
        assert_eq!(of("10.1.2.0/30", "10.1.2.1", "10.1.2.1", ""), "10.1.2.1-10.1.2.1: ", "only the gateway");
        assert_eq!(all(range("fd00::/64", "", "", "").unwrap()).0, (1 << 64) - 2);
        assert_eq!(all(range("::/0", "", "", "").unwrap()).0, u128::MAX - 1);
        assert_eq!(all(range("0.0.0.0/0", "", "", "").unwrap()).0, (1 << 32) - 3);
    }

    #[test]
    fn what_host_local_refuses() {
        for subnet in ["10.1.2.0/31", "10.1.2.0/32", "10.1.2.1/29", "usePodCidr", "10.1.2.0", "x/24", "fd00::/127", ""]
        {
            assert!(range(subnet, "", "", "").is_err(), "{subnet}");
        }
        for (start, end, gateway) in
            [("10.1.3.1", "", ""), ("", "10.1.3.1", ""), ("10.1.2.5", "10.1.2.4", ""), ("", "", "x")]
        {
            assert!(range("10.1.2.0/24", start, end, gateway).is_err(), "{start} {end} {gateway}");
        }
        assert!(range("10.1.2.0/24", "fd00::1", "", "").is_err());
        let one = |subnet| range(subnet, "", "", "").unwrap();
        assert!(RangeSet::new(vec![]).is_err());
        assert!(RangeSet::new(vec![one("10.1.2.0/30"), one("10.1.2.0/29")]).is_err());
        assert!(RangeSet::new(vec![one("10.1.2.0/30"), one("fd00::/64")]).is_err());
        let two = RangeSet::new(vec![one("10.1.2.0/30"), one("10.1.2.4/30")]).unwrap();
        assert_eq!((two.size(), two.to_string()), (2, "10.1.2.1-10.1.2.2,10.1.2.5-10.1.2.6".to_owned()));
    }

    #[test]
    fn an_address_of_ipv4_written_as_one_of_ipv6() {
        assert_eq!(address("::ffff:10.1.2.3"), address("10.1.2.3"));
        assert_eq!(address("last_reserved_ip.0"), None);
        assert_eq!(address("lock"), None);
    }
}
