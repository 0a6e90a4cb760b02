//! A pod with very many volumes in memory.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;

use crate::memory_volume::{Lab, MIB, UID, of_volume, set_limit};

const TENANT: &str = "11111111-2222-4333-8444-000000000002";

/// A hundred and twenty of 8 KiB, each of them full, with a limit of 4 KiB; the victim's is at 95 % of its limit.
#[test]
fn a_pod_with_very_many_volumes_hides_no_other_pods() {
    alone!();
    let Some(mut lab) = Lab::open() else { return };
    set_limit(&lab.pod(UID), 20 * MIB);
    let volume = lab.volume(UID, "cache");
    fs::write(volume.join("data"), vec![1; 19 * MIB as usize]).unwrap();
    fs::create_dir_all(lab.pod(TENANT)).unwrap();
    set_limit(&lab.pod(TENANT), 4096);
    for number in 0..120 {
        let volume = lab.volume(TENANT, &format!("v{number:03}"));
        fs::write(volume.join("data"), [1; 8192]).unwrap();
    }
    let exporter = lab.exporter();
    for _ in 0..2 {
        let page = exporter.scrape();
        assert_eq!(page.outcome("memory_volume"), "ok");
        let (used, limit) = (of_volume(&page, "used", UID, "cache"), of_volume(&page, "limit", UID, "cache"));
        let ratio = used.unwrap() / limit.unwrap();
        assert!((0.94..0.97).contains(&ratio), "what HeadroomMemoryVolumeNearLimit divides: {ratio}");
        assert_eq!(page.family("headroom_memory_volume_used_bytes").count(), 100);
        let lost = format!("headroom_series_dropped{{collector=\"memory_volume\",cap=\"pod\",pod_uid=\"{TENANT}\"}}");
        assert_eq!(page.get(&lost), Some(21.0));
    }
}
