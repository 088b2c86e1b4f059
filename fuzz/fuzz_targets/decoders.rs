//! Any bytes to every decoder of `xfrm-proto`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xfrm_proto::algo::{AlgoBlob, Layout};
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::XFRMA_MAX;
use xfrm_proto::control::{Address, Answer, Request};
use xfrm_proto::policy::Table;
use xfrm_proto::reply::messages;

fuzz_target!(|input: &[u8]| {
    for (_, message) in messages(input) {
        for table in [Table::xfrma(XFRMA_MAX), Table::spd()] {
            let _ = Attrs::parse(message, 16, &table);
        }
    }
    for layout in [Layout::Plain, Layout::WithIcv] {
        if let Some(blob) = AlgoBlob::read(input, layout) {
            assert!(blob.key.len() <= input.len());
        }
    }
    if let Some((request, _)) = Request::decode(input) {
        let encoded = request.encode();
        assert_eq!(Request::decode(&encoded), Some((request, &[][..])));
    }
    if let Some((answer, _)) = Answer::decode(input) {
        let encoded = answer.encode();
        assert_eq!(Answer::decode(&encoded), Some((answer, &[][..])));
    }
    let _ = Address::parse(input);
});
