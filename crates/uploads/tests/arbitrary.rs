//! Laws over arbitrary input: names, ids and digests, plans, ranges, times, and hashes that go on.
#![allow(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use driftline_uploads::{
    Bytes, CHUNKS_MAX, ContentType, Digest, Durability, Expiry, MemoryShell, NAME_BYTES_MAX, PartError,
    PartWriter, Plan, Ranges, RunningHash, Shell, UploadId, file_name, hash_rest, rehash,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use unicode_normalization::UnicodeNormalization as _;

mod support;

use support::Folder;

const ID: UploadId = UploadId::of([0xab; 16]);

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Texts of letters that names stumble over, among arbitrary ones.
fn told() -> impl Strategy<Value = String> {
    let letter = prop_oneof![
        select(vec!['/', '\\', '.', ' ', '\u{a0}', '\0', '\n', '\u{85}', '\u{2028}', '\u{3000}']),
        select(vec!['\u{200b}', '\u{200f}', '\u{202e}', '\u{2066}', '\u{feff}', '\u{e0041}', '\u{ad}']),
        // Letters that compose with the one before, move before it, or are another one in NFC.
        select(vec!['\u{301}', '\u{323}', '\u{327}', '\u{345}', '\u{1161}', '\u{11a8}', '\u{3099}']),
        select(vec!['e', 'o', 's', '\u{1100}', '\u{212b}', '\u{2126}', '\u{340}', '\u{958}', '\u{fb1d}']),
        any::<char>(),
    ];
    prop_oneof![vec(letter.clone(), 0..12), vec(letter, 100..300)].prop_map(|text| text.into_iter().collect())
}

/// Texts that are hexadecimal digits, or nearly.
fn digits() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9a-f]{30,34}",
        "[0-9a-fA-F]{32}",
        "[0-9a-g+ -]{32}",
        "[0-9a-fA-F]{62,66}",
        any::<String>()
    ]
}

/// Numbers that are small, so that they meet, or at the end of what a number can be.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..40_u64, (0..40_u64).prop_map(|number| u64::MAX - number)]
}

proptest! {
    #![proptest_config(config(4_000))]

    #[test]
    fn a_name_is_harmless_whatever_was_told(told in told()) {
        let name = file_name(&told);
        prop_assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX);
        prop_assert!(!name.contains(['/', '\\']) && !matches!(name.as_str(), "." | ".."));
        let steers = |letter| matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        prop_assert!(!name.chars().any(|letter| letter.is_control() || steers(letter)));
        prop_assert_eq!(name.trim(), &name);
        prop_assert!(name.nfc().eq(name.chars()), "{:?} is not NFC", name);
        prop_assert_eq!(file_name(&name), name);
    }

    #[test]
    fn a_harmless_name_stays_as_it_is(name in "[a-zA-Z0-9äöü_-][a-zA-Z0-9äöü ._-]{0,40}[a-zäöü]") {
        let name: String = name.nfc().collect();
        for folder in ["", "/", "C:\\", "a/b\\", "../"] {
            prop_assert_eq!(&file_name(&format!("{folder}{name}")), &name);
        }
    }

    #[test]
    fn ids_and_digests_are_read_as_they_are_written(id in any::<[u8; 16]>(), digest in any::<[u8; 32]>()) {
        let (id, digest) = (UploadId::of(id), Digest::of(digest));
        prop_assert_eq!(id.to_string().parse(), Ok(id));
        prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        prop_assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
    }

    /// What is read is written as it was; the rest has another length or another letter.
    #[test]
    fn nothing_else_is_an_id_or_a_digest(text in digits()) {
        let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.parse::<UploadId>() {
            Ok(id) => prop_assert_eq!(id.to_string(), text.as_str()),
            Err(_) => prop_assert!(text.len() != 32 || !text.bytes().all(lower)),
        }
        match text.parse::<Digest>() {
            Ok(digest) => prop_assert_eq!(digest.to_string(), text.to_ascii_lowercase()),
            Err(_) => prop_assert!(text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit())),
        }
    }

    #[test]
    fn a_content_type_is_read_once(text in prop_oneof![any::<String>(), "[ a-zA-Z0-9/;=*.+-]{0,20}"]) {
        if let Ok(content_type) = ContentType::new(&text) {
            prop_assert!(content_type.as_str().bytes().all(|byte| byte.is_ascii_graphic() && byte != b';'));
            prop_assert_eq!(ContentType::new(content_type.as_str()), Ok(content_type));
        }
    }

    /// What it says of its length agrees, or it is refused; a hash that goes on wrongly makes another digest.
    #[test]
    fn a_damaged_state_is_refused_or_makes_another_digest(
        (hashed, more) in (vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300)),
        damages in vec((any::<Index>(), any::<u8>()), 1..4),
        len in prop_oneof![Just(None), any::<Index>().prop_map(Some)],
    ) {
        let mut running = RunningHash::default();
        running.update(&hashed);
        let state = running.put_away();
        let mut damaged = state.clone();
        for (at, byte) in damages {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        damaged.truncate(len.map_or(damaged.len(), |len| len.index(damaged.len() + 1)));
        if let Ok(mut resumed) = RunningHash::resume(&damaged) {
            resumed.update(&more);
            running.update(&more);
            prop_assert_eq!(resumed.digest() == running.digest(), damaged == state);
        }
    }

    #[test]
    fn bytes_that_are_no_state_make_no_panic(state in vec(any::<u8>(), 100..130), more in vec(any::<u8>(), 0..200)) {
        if let Ok(mut running) = RunningHash::resume(&state) {
            running.update(&more);
            let _ = running.digest();
        }
    }

    #[test]
    fn chunks_that_are_chosen_are_few_and_cover_the_file(
        size in prop_oneof![0..100_000_u64, any::<u64>(), (0..64_u32).prop_map(|bits| 1 << bits)],
        wanted in prop_oneof![1..10_000_u64, 1..=u64::MAX, (0..64_u32).prop_map(|bits| 1 << bits)],
        at in any::<u64>(),
    ) {
        let plan = Plan::choose(size, NonZeroU64::new(wanted).unwrap());
        prop_assert!(plan.chunks() <= CHUNKS_MAX);
        let is_wanted = plan.chunk_bytes() == wanted;
        prop_assert_eq!(is_wanted, size.div_ceil(wanted) <= CHUNKS_MAX);
        prop_assert!(is_wanted || plan.chunk_bytes().is_multiple_of(4096));
        // Half of them would be too short, but for what is rounded up.
        let longest = (2 * u128::from(size)).div_ceil(u128::from(CHUNKS_MAX)) + 4096;
        prop_assert!(is_wanted || u128::from(plan.chunk_bytes()) < longest);
        prop_assert_eq!(plan.chunk(plan.chunks()), None);
        if let Some(at) = at.checked_rem(size) {
            let (from, len) = plan.chunk(at / plan.chunk_bytes()).unwrap();
            prop_assert!(from <= at && at - from < len && len <= plan.chunk_bytes());
        }
    }

    #[test]
    fn ranges_are_a_set(numbers in vec(number(), 0..60), end in number(), most in prop_oneof![0..4_usize, Just(usize::MAX)]) {
        let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
        for number in numbers {
            prop_assert_eq!(ranges.insert(number), set.insert(number));
        }
        prop_assert_eq!(ranges.count(), set.len() as u64);
        let near = (0..50).chain((0..50).map(|number| u64::MAX - number));
        prop_assert!(near.clone().all(|number| ranges.contains(number) == set.contains(&number)));
        prop_assert_eq!(&ranges, &set.iter().rev().copied().collect(), "in whatever order they come");

        let gaps = ranges.missing(end, most);
        let lies_in = |number| gaps.iter().any(|[from, to]| (*from..=*to).contains(&number));
        let told = gaps.last().map_or(0, |[_, to]| to + 1);
        let told = if gaps.len() < most { end } else { told };
        prop_assert!(gaps.len() <= most && gaps.iter().all(|[from, to]| from <= to && *to < end));
        prop_assert!(gaps.windows(2).all(|pair| pair[0][1] + 1 < pair[1][0]), "gaps touch: {:?}", gaps);
        for number in near {
            prop_assert_eq!(lies_in(number), number < told && !set.contains(&number), "{}", number);
        }
    }

    #[test]
    fn times_of_expiry_are_dates_and_do_not_go_back(
        (idle_ms, whole_ms, opened_ms, last_ms, more_ms) in (time(), time(), time(), time(), time()),
    ) {
        for expiry in [Expiry::Sliding { idle_ms, whole_ms }, Expiry::Fixed { whole_ms }] {
            let ends_ms = expiry.expires_ms(opened_ms, last_ms);
            let latest_ms = expiry.at_the_latest_ms(opened_ms);
            prop_assert!(ends_ms <= latest_ms && latest_ms <= 253_402_300_799_999);
            prop_assert!(ends_ms <= expiry.expires_ms(opened_ms, last_ms.saturating_add(more_ms)));
            let exact = u128::from(opened_ms) + u128::from(whole_ms);
            prop_assert_eq!(u128::from(latest_ms), exact.min(253_402_300_799_999));
        }
    }
}

fn time() -> impl Strategy<Value = u64> {
    prop_oneof![0..1_000_u64, 253_402_300_799_000..253_402_300_801_000_u64, any::<u64>(), Just(u64::MAX)]
}

/// A file, and places at which it is cut, with the beginning and the end.
fn pieces() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    (prop_oneof![vec(any::<u8>(), 0..200), vec(any::<u8>(), 100_000..300_000)], vec(any::<Index>(), 0..8))
        .prop_map(|(file, cuts)| {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
            cuts.extend([0, file.len()]);
            cuts.sort_unstable();
            (file, cuts)
        })
}

/// Writes a file as one part in pieces, and gives what it left.
fn write<S: Shell>(
    shell: &S,
    file: &[u8],
    cuts: &[usize],
    put_away: bool,
) -> (S::Bytes, Digest, RunningHash) {
    shell.create(&ID).unwrap();
    let end = file.len() as u64;
    let mut running = RunningHash::default();
    let mut writer = PartWriter::new(shell.stage(&ID).unwrap(), 0, end, Some(running.clone())).with_digest();
    for cut in cuts.windows(2) {
        assert_eq!((writer.at(), writer.running().unwrap().through()), (cut[0] as u64, cut[0] as u64));
        writer.write(&file[cut[0]..cut[1]]).unwrap();
        running = writer.running().unwrap().clone();
        assert_eq!(running.digest(), Digest::hash(&file[..cut[1]]));
        if put_away {
            // Somebody else goes on with what was put away.
            running = RunningHash::resume(&running.put_away()).unwrap();
            let staged = shell.stage(&ID).unwrap();
            let other = PartWriter::new(staged, cut[1] as u64, end, Some(running.clone()));
            assert_eq!(other.running().map(RunningHash::digest), Some(running.digest()));
        }
    }
    assert_eq!(writer.write(b"x"), Err(PartError::TooLong));
    writer.settle(Durability::Os).unwrap();
    (shell.stage(&ID).unwrap(), writer.digest().unwrap(), running)
}

fn read(bytes: &impl Bytes, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len + 1];
    let len = bytes.read_at(0, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn pieces_make_the_file_and_its_hash((file, cuts) in pieces(), on_disk in any::<bool>()) {
        let whole = Digest::hash(&file);
        let (read, digest, running) = if on_disk {
            let folder = Folder::new();
            let (bytes, digest, running) = write(&folder.disk(), &file, &cuts, true);
            (read(&bytes, file.len()), digest, running)
        } else {
            let (bytes, digest, running) = write(&MemoryShell::default(), &file, &cuts, true);
            (read(&bytes, file.len()), digest, running)
        };
        prop_assert!(read == file);
        prop_assert_eq!((digest, running.digest(), running.through()), (whole, whole, file.len() as u64));
    }

    /// From every cut on, also where more is hashed than the file has.
    #[test]
    fn the_rest_makes_the_hash_of_the_whole((file, cuts) in pieces(), size in any::<Index>()) {
        let (bytes, _, _) = write(&MemoryShell::default(), &file, &[0, file.len()], false);
        let size = size.index(file.len() + 1);
        for cut in cuts {
            let mut running = RunningHash::default();
            running.update(&file[..cut]);
            let resumed = RunningHash::resume(&running.put_away()).unwrap();
            prop_assert_eq!(hash_rest(&bytes, resumed, file.len() as u64), Ok(Digest::hash(&file)));
            prop_assert_eq!(hash_rest(&bytes, running, size as u64), Ok(Digest::hash(&file[..size])));
        }
        prop_assert!(hash_rest(&bytes, RunningHash::default(), file.len() as u64 + 1).is_err());
    }

    /// A byte that rots and a cut make those chunks wrong that they are in, and no others.
    #[test]
    fn chunks_that_rotted_are_found(
        (file, _) in pieces(),
        chunk in 1..100_000_u64,
        (flips, cut) in (vec(any::<Index>(), 0..4), any::<Index>()),
    ) {
        prop_assume!(!file.is_empty());
        let plan = Plan::choose(file.len() as u64, NonZeroU64::new(chunk).unwrap());
        let len = usize::try_from(plan.chunk_bytes()).unwrap();
        let digests: Vec<_> = (0..).zip(file.chunks(len).map(Digest::hash)).collect();
        let (mut bytes, _, _) = write(&MemoryShell::default(), &file, &[0, file.len()], false);
        prop_assert_eq!(rehash(&bytes, &plan, digests.iter().copied()), Ok(vec![]));
        let cut = cut.index(file.len() + 1);
        let mut wrong = BTreeSet::new();
        for flip in flips {
            let at = flip.index(file.len());
            bytes.write_at(at as u64, &[!file[at]]).unwrap();
            wrong.insert(at as u64 / plan.chunk_bytes());
        }
        bytes.set_len(cut as u64).unwrap();
        if cut < file.len() {
            wrong.extend(cut as u64 / plan.chunk_bytes()..plan.chunks());
        }
        prop_assert_eq!(rehash(&bytes, &plan, digests.iter().copied()), Ok(wrong.into_iter().collect()));
    }
}
