//! Replays the kept corpus, and a bounded number of seeded mutations of it, through every target.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use driftline_fuzz::{TARGETS, Target, Verdict};

/// Mutations of each target's corpus in a run of the tests.
const MUTATIONS: u64 = 10_000;

/// No mutation becomes longer, so that a run stays one of seconds.
const MUTANT_BYTES_MAX: usize = 2 << 10;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The kept inputs of a target by their files' names, in order.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join(target.name);
    let files = std::fs::read_dir(&folder).expect("every target has a corpus");
    let mut inputs: Vec<_> = files
        .map(|file| {
            let path = file.expect("an entry of the corpus").path();
            let name = path.file_name().expect("a file's name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("an input is readable"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// Names the input when a target panics on it, and then goes on panicking.
struct Story<'a>(&'a str, String);

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, input {}", self.0, self.1);
        }
    }
}

#[test]
fn every_kept_input_is_replayed() {
    for target in TARGETS {
        let (mut accepted, mut refused) = (0, 0);
        for (name, input) in corpus(target) {
            let story = Story(target.name, format!("corpus/{}/{name}", target.name));
            match (target.run)(&input) {
                Verdict::Accepted => accepted += 1,
                Verdict::Refused => refused += 1,
            }
            drop(story);
        }
        assert!(accepted > 0, "{}: the corpus holds no input that is accepted", target.name);
        assert!(refused > 0, "{}: the corpus holds no input that is refused", target.name);
    }
}

#[test]
fn mutations_keep_the_properties() {
    for (number, target) in TARGETS.iter().enumerate() {
        let inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
        for seed in 0..MUTATIONS {
            let mutant = Mutation { state: seed << 8 | number as u64 }.of(&inputs);
            let story = Story(target.name, format!("of seed {seed}: {}", mutant.escape_ascii()));
            (target.run)(&mutant);
            drop(story);
        }
    }
}

#[test]
fn folders_of_the_corpus_are_targets() {
    let folders: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the corpus")
        .map(|entry| entry.expect("an entry of the corpus").file_name().to_string_lossy().into_owned())
        .collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(folders, targets);
    assert_eq!(targets.len(), TARGETS.len(), "names are told apart");
}

/// A corpus that is carried by everyone who clones the repository stays small.
#[test]
fn the_corpus_is_small() {
    let inputs: Vec<_> = TARGETS.iter().flat_map(corpus).collect();
    let bytes: usize = inputs.iter().map(|(_, input)| input.len()).sum();
    assert!(inputs.len() < 1_500 && bytes < 1 << 20, "{} inputs of {bytes} bytes", inputs.len());
}

/// Changes of inputs, drawn from a number and from nothing else (SplitMix64).
struct Mutation {
    state: u64,
}

impl Mutation {
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound as u64).expect("a remainder is below its divisor")
    }

    /// One to four changes of one of the inputs.
    fn of(mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut input, inputs);
        }
        input.truncate(MUTANT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        match self.below(6) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = b"\"\\{}[],:0e-. \x00\xff"[self.below(15)],
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].repeat(1 + self.below(70));
                drop(input.splice(at..at, piece));
            }
            4 => input.truncate(at),
            _ => {
                let other = &inputs[self.below(inputs.len())];
                let from = self.below(other.len() + 1);
                let to = (from + self.below(64)).min(other.len());
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
        }
    }
}
