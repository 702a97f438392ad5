//! What is read from memory is what the disk has.

use super::*;
use crate::storage::{File, sim::SimStorage};

#[test]
fn reads_from_memory_give_the_bytes_of_the_file() {
    for seed in 0..40 {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x716);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = open(&storage, true);
        let ring = a.segments().ring.clone();
        for n in 0..300 {
            let records: Vec<_> = (0..=rng.below(3)).map(|i| message(n * 10 + i, rng.below(900) as usize)).collect();
            let batch = a.commit(pending(&records), n).expect("commits");
            ring.push(Arc::new(batch));
        }
        assert!(a.segments().len() > 2, "over segments");
        let (mut found, mut long) = (0, 0);
        for _ in 0..2_000 {
            let all = a.segments().all();
            let (segment, _) = &all[rng.below(all.len() as u64) as usize];
            let at = crate::segment::BATCHES_AT + rng.below(u64::from(SMALL.segment_bytes) - crate::segment::BATCHES_AT);
            let (mut memory, mut disk) = (vec![7; 1 + rng.below(6_000) as usize], vec![9; 6_001]);
            let Some(n) = ring.read_at(segment.head.base, &mut memory, at) else { continue };
            segment.file.read_at(&mut disk[..n], at).expect("reads");
            assert_eq!(memory[..n], disk[..n], "seed {seed}: {n} bytes at {at} of {}", segment.name);
            found += 1;
            long += u32::from(n > 2_000);
        }
        assert!(found > 200 && long > 20, "seed {seed}: {found} reads found something, {long} over several batches");
        let first = ring.start().expect("it is not empty");
        assert!(first > Offset(0), "the oldest have left");
        assert_eq!(ring.read_at(Offset(0), &mut [0; 64], crate::segment::BATCHES_AT), None, "which is told");
        assert_eq!(everything(&a).len() as u64, a.next().0, "a scan over both");
    }
}
