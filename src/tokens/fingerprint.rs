//! What sequences are known by: any change of what is trained or measured is noticed.

use rayon::prelude::*;

use super::sequence::{AnswerInfo, Sequence, SoftTarget};

/// A hash of all that sequences hold, in their order.
pub fn fingerprint(sequences: &[Sequence]) -> blake3::Hash {
    let hash = |sequence| *blake3::hash(&bytes(sequence)).as_bytes();
    let hashes: Vec<[u8; 32]> = sequences.par_iter().map(hash).collect();
    blake3::hash(hashes.as_flattened())
}

/// Each part behind its length, so that no two sequences give the same bytes.
fn bytes(sequence: &Sequence) -> Vec<u8> {
    let Sequence { id, user, input_ids, targets, format_positions } = sequence;
    let mut out = Vec::with_capacity(sequence.bytes());
    put(&mut out, id.as_bytes(), |byte| [*byte]);
    put(&mut out, user.as_bytes(), |byte| [*byte]);
    put(&mut out, input_ids, |id| id.to_le_bytes());
    put(&mut out, format_positions, |position| position.to_le_bytes());
    for SoftTarget { position, token_ids, probs, predictive, weight, answer, belief } in targets {
        out.extend(position.to_le_bytes());
        out.extend(weight.to_le_bytes());
        put(&mut out, token_ids, |id| id.to_le_bytes());
        put(&mut out, probs, |p| p.to_le_bytes());
        put_some(&mut out, predictive.as_ref(), |out, predictive| put(out, predictive, |p| p.to_le_bytes()));
        put_some(&mut out, answer.as_ref(), |out, AnswerInfo { said, truth, observations }| {
            let counts = [Some(*said), *truth, Some(*observations)];
            put(out, &counts, |count| count.map_or(u64::MAX, |count| count as u64).to_le_bytes());
        });
        put_some(&mut out, belief.as_ref(), |out, belief| put(out, belief.as_bytes(), |byte| [*byte]));
    }
    out
}

fn put<T, const N: usize>(out: &mut Vec<u8>, items: &[T], to_bytes: impl Fn(&T) -> [u8; N]) {
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| out.extend(to_bytes(item)));
}

fn put_some<T>(out: &mut Vec<u8>, item: Option<T>, put: impl Fn(&mut Vec<u8>, T)) {
    out.push(u8::from(item.is_some()));
    if let Some(item) = item {
        put(out, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts() {
        let sequence = || Sequence {
            id: "a".into(),
            user: "u".into(),
            input_ids: vec![1, 2],
            targets: vec![SoftTarget {
                position: 1,
                token_ids: vec![3, 4],
                probs: vec![0.25, 0.75],
                predictive: Some(vec![0.5, 0.5]),
                weight: 1.0,
                answer: Some(AnswerInfo { said: 0, truth: None, observations: 2 }),
                belief: None,
            }],
            format_positions: vec![0],
        };
        let changes: [fn(&mut Sequence); 14] = [
            |_| (),
            |s| s.id = "au".into(),
            |s| (s.id, s.user) = ("au".into(), String::new()),
            |s| s.input_ids = vec![2, 1],
            |s| s.format_positions.clear(),
            |s| s.targets.clear(),
            |s| s.targets[0].position = 0,
            |s| s.targets[0].token_ids[1] = 5,
            |s| s.targets[0].probs[1] = 0.75 + 1e-15,
            |s| s.targets[0].predictive = None,
            |s| s.targets[0].weight = 0.5,
            |s| s.targets[0].answer = None,
            |s| s.targets[0].answer = Some(AnswerInfo { said: 0, truth: Some(0), observations: 2 }),
            |s| s.targets[0].belief = Some(String::new()),
        ];
        let mut seen = std::collections::HashSet::new();
        for (i, change) in changes.iter().enumerate() {
            let mut changed = sequence();
            change(&mut changed);
            assert!(seen.insert(fingerprint(&[changed])), "change {i} is not noticed");
        }
        assert_ne!(fingerprint(&[sequence()]), fingerprint(&[sequence(), sequence()]));
    }
}
