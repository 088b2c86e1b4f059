//! The tests of a suite: which start first.
//!
//! A kernel records all of its scenarios or clients in one boot. Whichever test needs the recording
//! first makes it, the others wait for it. A recording sleeps for most of its time: so the makers
//! start first, side by side, and what needs no kernel runs meanwhile.

use std::collections::HashSet;

use libtest_mimic::{Arguments, Trial};

/// Puts the makers of recordings first and gives each a thread, unless `arguments` say how many
/// threads there are.
#[must_use]
pub fn recordings_first(trials: Vec<Trial>, arguments: &mut Arguments) -> Vec<Trial> {
    let mut seen = HashSet::new();
    let is_maker = |trial: &Trial| recording(trial.name()).is_some_and(|one| seen.insert(one));
    let (makers, others): (Vec<_>, Vec<_>) = trials.into_iter().partition(is_maker);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    arguments
        .test_threads
        .get_or_insert(makers.len() + processors);
    makers.into_iter().chain(others).collect()
}

/// Which recording a test named `live::KERNEL::NAME` or `shim::KERNEL::NAME` looks at.
fn recording(test: &str) -> Option<[String; 3]> {
    let (origin, name) = test.split_once("::")?;
    let (kernel, name) = name.split_once("::")?;
    let kind = match name.split_once('/') {
        Some((kind, _)) => kind,
        None if name == "fuzz" => name,
        None => "",
    };
    (origin != "golden").then(|| [origin, kernel, kind].map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_come_first() {
        let names = [
            "golden::6.1::a",
            "live::6.1::fuzz",
            "live::6.1::a",
            "live::6.1::b",
            "live::6.1::traffic/a",
            "live::6.1::traffic/b",
            "shim::6.1::a",
        ];
        let trials = names.map(|name| Trial::test(name, || Ok(()))).into();
        let mut arguments = Arguments::default();
        let ordered = recordings_first(trials, &mut arguments);
        let ordered: Vec<&str> = ordered.iter().map(Trial::name).collect();
        let expected = [1, 2, 4, 6, 0, 3, 5].map(|at| names[at]);
        assert_eq!(ordered, expected);
        assert!(arguments.test_threads.is_some_and(|threads| threads > 4));
    }
}
