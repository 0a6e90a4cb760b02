//! Which of a kubelet's sources each entry of its eviction maps comes from, and what was lost on the way.
//!
//! Nothing is resolved here: the steps are those of [`KubeletInputs::effective`], and an entry belongs to the step that
//! changed it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config_file::{self, Role};
use super::configuration::{Configuration, KubeletInputs, Source};
use crate::error::Result;

/// The four maps, by their names in the file.
pub const FIELDS: [&str; 4] = ["evictionHard", "evictionSoft", "evictionSoftGracePeriod", "evictionMinimumReclaim"];

/// One entry: its text, and who said it. `Source::Default`: the kubelet filled it in.
pub type Entries = BTreeMap<String, (String, Source)>;

/// An entry that an earlier source had and a later one took away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// One of [`FIELDS`].
    pub field: &'static str,
    /// Its signal.
    pub signal: String,
    /// What it said.
    pub value: String,
    /// Who had said it.
    pub was: Source,
    /// Who took it away.
    pub by: Source,
}

/// Where everything comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// In the order of [`FIELDS`].
    pub maps: [Entries; 4],
    /// In the order in which it was lost.
    pub lost: Vec<Lost>,
}

/// Follows the entries through the sources of a kubelet.
///
/// # Errors
/// Malformed where a kubelet would refuse to start.
pub fn trace(told: &KubeletInputs) -> Result<Provenance> {
    let mut all = Provenance::default();
    let effective = told.effective()?;
    told.merged(|source, merged| {
        // A step that a later one mends has nothing to show.
        if let Ok(configuration) = Configuration::of(merged) {
            all.step(&configuration, &source);
        }
    })?;
    all.step(&effective, &Source::Flag);
    // A flag is the source of its whole map, also of an entry that reads as before.
    if let Some(flags) = &told.flags {
        let given = [
            &flags.eviction_hard,
            &flags.eviction_soft,
            &flags.eviction_soft_grace_period,
            &flags.eviction_minimum_reclaim,
        ];
        for (entries, _) in all.maps.iter_mut().zip(given).filter(|(_, flag)| flag.is_some()) {
            entries.values_mut().for_each(|(_, source)| *source = Source::Flag);
        }
    }
    // What the file did not say itself, the kubelet has filled in.
    if let Some(file) = &told.file {
        let written = config_file::parse(&file.text, Role::Base)?;
        let said = |signal: &str| written.get(FIELDS[0]).is_some_and(|hard| hard.get(signal).is_some());
        let from_file = Source::File(file.path.clone());
        for (signal, (_, source)) in &mut all.maps[0] {
            if *source == from_file && !said(signal) {
                *source = Source::Default;
            }
        }
        for lost in &mut all.lost {
            if lost.field == FIELDS[0] && lost.was == from_file && !said(&lost.signal) {
                lost.was = Source::Default;
            }
        }
    }
    Ok(all)
}

/// What each file says by itself, before anything is merged.
pub fn written(told: &KubeletInputs) -> Vec<(Source, Result<Map<String, Value>>)> {
    let file =
        told.file.iter().map(|text| (Source::File(text.path.clone()), config_file::parse(&text.text, Role::Base)));
    let dropins = told.dropins.iter().flatten();
    let dropins = dropins.map(|text| (Source::Dropin(text.path.clone()), config_file::parse(&text.text, Role::Dropin)));
    file.chain(dropins).collect()
}

/// What is wrong with a `--config` file that a kubelet forgives: a key that appears twice.
pub fn forgiven(told: &KubeletInputs) -> Option<String> {
    let text = &told.file.as_ref()?.text;
    config_file::parse(text, Role::Base).ok()?;
    config_file::parse(text, Role::Dropin).err().map(|error| error.to_string())
}

impl Provenance {
    fn step(&mut self, now: &Configuration, source: &Source) {
        let maps =
            [&now.eviction_hard, &now.eviction_soft, &now.eviction_soft_grace_period, &now.eviction_minimum_reclaim];
        for ((entries, now), field) in self.maps.iter_mut().zip(maps).zip(FIELDS) {
            entries.retain(|signal, (value, was)| {
                let stays = now.contains_key(signal);
                if !stays {
                    let (signal, value) = (signal.clone(), value.clone());
                    self.lost.push(Lost { field, signal, value, was: was.clone(), by: source.clone() });
                }
                stays
            });
            for (signal, value) in now {
                if entries.get(signal).is_none_or(|(before, _)| before != value) {
                    entries.insert(signal.clone(), (value.clone(), source.clone()));
                }
            }
        }
    }
}
