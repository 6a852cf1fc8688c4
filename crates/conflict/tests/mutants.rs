//! Planted faults, one for each rule and for each law: the law named beside a fault has to notice it.
//!
//! A fault is a wrapper that changes what goes into the merge or what comes out of it. `--nocapture` prints the first
//! seed that caught each.

mod mutant;
mod support;

use mutant::{Mutant, inputs, outputs, policies};
use support::laws::LAWS;

const HISTORIES: u64 = 500;

#[test]
fn every_planted_fault_is_caught() {
    let mutants: Vec<Mutant> =
        [inputs::all(), policies::all(), outputs::all()].into_iter().flatten().collect();
    assert!(mutants.len() >= 40, "only {} planted faults", mutants.len());
    let mut unnoticed = Vec::new();
    println!("{:<34} {:<9} {:>5}  what it breaks", "fault", "law", "seed");
    for Mutant { name, breaks, law, apply } in &mutants {
        let (_, check) = LAWS.iter().find(|(known, _)| known == law).expect("a law");
        let caught = (0..HISTORIES).find(|seed| check(apply, *seed).is_err());
        let seed = caught.map_or("none".to_owned(), |seed| seed.to_string());
        println!("{name:<34} {law:<9} {seed:>5}  {breaks}");
        if caught.is_none() {
            unnoticed.push(name);
        }
    }
    assert!(unnoticed.is_empty(), "unnoticed within {HISTORIES} histories: {unnoticed:?}");
    for (law, _) in LAWS {
        assert!(mutants.iter().any(|mutant| mutant.law == law), "nothing shows that {law} can fail");
    }
}
