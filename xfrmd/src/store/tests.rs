use std::collections::BTreeMap;

use dataplane::{Entropy, SeededEntropy};

use super::*;

fn profile() -> &'static Profile {
    Profile::by_name("7.2").unwrap()
}

fn record(place: u32) -> Record {
    Record {
        netns: 3,
        kind: Kind::Sa,
        place,
    }
}

fn reopened(store: &Store) -> Result<(Store, Vec<Found>), Refusal> {
    Store::open(store.fd().try_clone_to_owned().unwrap(), profile())
}

fn fresh() -> Store {
    Store::open(Store::file().unwrap(), profile()).unwrap().0
}

fn contents(found: &[Found]) -> BTreeMap<u32, (Vec<u8>, Vec<u64>)> {
    let words = |it: &Found| {
        it.words
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect()
    };
    found
        .iter()
        .map(|it| (it.record.place, (it.image.clone(), words(it))))
        .collect()
}

/// Whatever is put, removed and committed: what is found is what counted last, and what does not
/// count is nowhere in the file.
#[test]
fn what_was_committed_is_found_and_nothing_else() {
    let mut store = fresh();
    let mut entropy = SeededEntropy::new(7);
    let mut model = BTreeMap::new();
    for round in 0..300_u64 {
        let before = model.clone();
        let mut now = model.clone();
        for _ in 0..entropy.below(6) {
            let place = entropy.below(20);
            if entropy.below(3) == 0 {
                store.remove(record(place));
                now.remove(&place);
                continue;
            }
            let image: Vec<u8> = (0..entropy.below(900))
                .map(|at| (at + place).to_le_bytes()[0])
                .collect();
            let mut words = now.remove(&place).map(|(_, words)| words);
            if words.is_none() || entropy.below(4) == 0 {
                let count = 1 + entropy.below(30) as usize;
                let lent = store.lend(record(place), count).unwrap();
                assert!(lent.iter().all(|word| word.load(Ordering::Relaxed) == 0));
                lent[0].store(round, Ordering::Relaxed);
                let mut fresh = vec![0; count];
                fresh[0] = round;
                words = Some(fresh);
            }
            store.put(record(place), &image);
            now.insert(place, (image, words.unwrap()));
        }
        let is_committed = entropy.below(4) != 0;
        if is_committed {
            store.commit();
            model = now;
        }
        if !is_committed || entropy.below(10) == 0 {
            // Killed here.
            let (next, found) = reopened(&store).unwrap();
            assert_eq!(contents(&found), model, "{round}: {before:?}");
            store = next;
        }
    }
}

#[test]
fn what_is_gone_is_wiped() {
    let mut store = fresh();
    let secret = b"a key that nobody must find again";
    let lies_there = |store: &Store| {
        let words = store.memory.pieces().iter().flat_map(|piece| piece.iter());
        let bytes: Vec<u8> = words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        bytes.windows(secret.len()).any(|part| part == secret)
    };
    store.put(record(1), secret);
    store.commit();
    assert!(lies_there(&store));
    store.put(record(1), b"another");
    store.commit();
    assert!(!lies_there(&store));
    store.put(record(1), secret);
    store.commit();
    store.remove(record(1));
    store.commit();
    assert!(!lies_there(&store));
    // Of a request that was never answered, too.
    store.put(record(1), secret);
    let (store, found) = reopened(&store).unwrap();
    assert!(found.is_empty());
    assert!(!lies_there(&store));
}

#[test]
fn others_and_damaged_ones_are_refused() {
    let mut store = fresh();
    store.lend(record(1), 4).unwrap();
    store.put(record(1), b"an image that is kept");
    store.commit();
    let other = Store::open(
        store.fd().try_clone_to_owned().unwrap(),
        Profile::by_name("6.1").unwrap(),
    );
    assert!(matches!(other, Err(Refusal::Foreign)));
    let words = &store.memory.pieces()[0][..store.uncut];
    let before: Vec<u64> = words
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .collect();
    let mut refused = 0;
    for (word, was) in words.iter().zip(&before) {
        for bad in [was ^ 1 << 40, was.wrapping_add(1), u64::MAX] {
            word.store(bad, Ordering::Relaxed);
            refused += u32::from(reopened(&store).is_err());
            for (word, was) in words.iter().zip(&before) {
                word.store(*was, Ordering::Relaxed);
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn freed_memory_is_used_again() {
    let mut store = fresh();
    for round in 0..10_000 {
        let place = record(round % 7);
        store.lend(place, 16).unwrap();
        store.put(place, &[1; 200]);
        store.commit();
    }
    assert_eq!(store.memory.pieces().len(), 1);
    assert!(store.bytes() < 7 * 1024 + 1024, "{}", store.bytes());
}
