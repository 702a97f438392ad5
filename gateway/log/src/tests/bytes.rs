//! The bytes on disk, as `record.rs`, `batch.rs` and `segment.rs` have them in their tables.

use super::*;
use crate::{
    record::crc,
    segment::{BATCHES_AT, BLOCK, SegmentHead},
    storage::{File, FileStorage, Name},
};
use proptest::prelude::*;

#[test]
fn a_segment_lies_on_disk_as_the_tables_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = Arc::new(FileStorage::new(dir.path(), Durability::Disk).expect("creates"));
    let mut a = open(&storage, true);
    let mut r = Records::default();
    r.push(Kind::Message, 0b101, b"origin..", b"a/b", b"\x01\x01", b"hello").expect("small");
    a.commit(pending(&[r]), 77).expect("commits");
    let bytes = std::fs::read(dir.path().join("00000000000000000000.log")).expect("reads");
    assert_eq!(bytes.len(), SMALL.segment_bytes as usize);

    let head = SegmentHead::parse(&bytes).expect("a header");
    assert_eq!((&bytes[..8], head.base, head.partition.0), (&b"WEIS\x01\0\0\0"[..], Offset(0), 3));
    let at = BATCHES_AT as usize;
    assert_eq!(at, 12_288);
    let b = &bytes[at..];
    let record_len = 16 + 8 + 2 + 3 + 2 + 1 + 2 + 5;
    assert_eq!(&b[..4], b"WEIB");
    assert_eq!(b[8..16], head.salt.to_le_bytes());
    assert_eq!(b[24..28], (48 + record_len as u32).to_le_bytes());
    assert_eq!((b[28], b[32]), (1, 77));
    let r = &b[48..48 + record_len];
    assert_eq!(r[..4], (record_len as u32).to_le_bytes());
    assert_eq!(r[8..12], crc(&r[12..]).to_le_bytes());
    assert_eq!(&r[12..], b"\x00\x05\x08\x00origin..\x00\x03a/b\x00\x00\x02\x01\x01hello");
    assert!(b[48 + record_len..].iter().all(|b| *b == 0));
}

/// CRC-32C of "123456789" (RFC 3720, and every catalogue of checksums).
#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(crc(b"123456789"), 0xE306_9283);
}

#[test]
fn a_following_batch_rewrites_the_front_of_its_block_with_equal_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = Arc::new(FileStorage::new(dir.path(), Durability::Disk).expect("creates"));
    let mut a = open(&storage, true);
    let path = dir.path().join("00000000000000000000.log");
    let mut before = std::fs::read(&path).expect("reads");
    for n in 0..200 {
        let at = BATCHES_AT as usize;
        a.commit(pending(&[message(n, (n as usize * 37) % 300)]), n).expect("commits");
        let after = std::fs::read(&path).expect("reads");
        let used = before.iter().rposition(|b| *b != 0).unwrap_or(at).max(at);
        assert_eq!(before[..used], after[..used], "batch {n}");
        before = after;
    }
    assert_eq!(everything(&a).len(), 200);
}

#[test]
fn a_file_that_is_no_segment_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = Arc::new(FileStorage::new(dir.path(), Durability::Disk).expect("creates"));
    drop(open(&storage, true));
    let file = storage.open(Name::Segment(Offset(0))).expect("opens");
    file.write_at(&[std::io::IoSlice::new(b"PNG")], 0).expect("writes");
    let error = Appender::open(storage, &opening(true, Offset(0))).err().expect("refused").to_string();
    assert!(error.contains("00000000000000000000.log") && error.contains("not a segment"), "{error}");
}

proptest! {
    /// Whatever is appended is read back, from any place, in any pieces, through any selector; clean and unclean reopening change nothing.
    #[test]
    fn random_operations_against_a_plain_list(
        sizes in proptest::collection::vec(proptest::collection::vec(0usize..4_000, 1..6), 1..40),
        reopen in proptest::collection::vec(0u8..6, 40),
        reads in proptest::collection::vec((any::<prop::sample::Index>(), 1u32..50, 1u32..20_000, 0u8..8), 1..20),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = Arc::new(FileStorage::new(dir.path(), Durability::Disk).expect("creates"));
        let mut a = open(&storage, true);
        let mut model: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (i, batch) in sizes.iter().enumerate() {
            let records: Vec<_> = batch.iter().enumerate().map(|(j, size)| message((model.len() + j) as u64, *size)).collect();
            let committed = a.commit(pending(&records), i as u64).expect("commits");
            prop_assert_eq!(committed.first(), Offset(model.len() as u64));
            model.extend(committed.iter().map(|r| (r.key.to_vec(), r.value.to_vec())));
            match reopen[i % reopen.len()] {
                0 => a = open(&storage, true),
                1 => a = open(&storage, false),
                _ => {}
            }
        }
        for (from, records_max, bytes_max, key) in reads {
            struct Key(Vec<u8>);
            impl crate::Select for Key {
                fn matches(&self, key: &[u8]) -> bool { key == self.0 || self.0 == b"k/7" }
            }
            let key = format!("k/{key}").into_bytes();
            let mut at = Offset(from.index(model.len()) as u64);
            let want: Vec<u64> = (at.0..model.len() as u64).filter(|n| key == b"k/7" || model[*n as usize].0 == key).collect();
            let mut got = Vec::new();
            while at < a.next() {
                let wanted = crate::Wanted::Range { from: at, to: a.next(), select: Arc::new(Key(key.clone())) };
                let fetch = crate::Fetch { partition: PartitionId(3), wanted, records_max, bytes_max };
                let f = fetch_from(&a, &fetch).expect("reads");
                prop_assert!(f.next > at && f.batch.len() as u32 <= records_max);
                for r in f.batch.iter() {
                    prop_assert_eq!((r.key, r.value), (&model[r.offset.0 as usize].0[..], &model[r.offset.0 as usize].1[..]));
                    got.push(r.offset.0);
                }
                at = f.next;
            }
            prop_assert_eq!(&got, &want);
            // The same records by their exact offsets.
            let exactly = crate::Wanted::Exactly(want.iter().copied().map(Offset).collect());
            let fetch = crate::Fetch { partition: PartitionId(3), wanted: exactly, records_max: u32::MAX, bytes_max: u32::MAX };
            let f = fetch_from(&a, &fetch).expect("reads");
            prop_assert_eq!(f.batch.iter().map(|r| r.offset.0).collect::<Vec<_>>(), want);
        }
    }
}

#[test]
fn blocks_are_those_of_the_disk() {
    assert_eq!(BATCHES_AT, 3 * BLOCK);
}
