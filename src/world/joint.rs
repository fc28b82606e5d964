//! Factors that some question bears on together are not independent once it is answered: they become one.

use super::Factor;

/// The most hypotheses that a joint factor may have.
pub(super) const MOST_HYPOTHESES: usize = 1_000_000;

/// Factors grouped so that every question bears on one group. The hypotheses of a group are all combinations of its
/// members' values, the last member's varying fastest.
#[derive(Clone, Debug)]
pub(super) struct Joint {
    /// One a group: independent of each other.
    pub(super) factors: Vec<Factor>,
    /// Of each of the factors given: its group, how many values it has, and how many hypotheses of the group one of
    /// its values spans.
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    group: usize,
    values: usize,
    stride: usize,
}

impl Joint {
    /// Joins factors; each of `together` lists factors that a question bears on. Groups are in the order of their
    /// first members. The error names a group that would be too large.
    pub(super) fn new<'a>(
        factors: &[Factor],
        together: impl Iterator<Item = &'a [usize]>,
    ) -> Result<Joint, String> {
        // The group of a factor is its lowest member.
        let mut group: Vec<usize> = (0..factors.len()).collect();
        for joined in together {
            let lowest = joined.iter().map(|&f| group[f]).min().unwrap_or(0);
            let merged: Vec<usize> = joined.iter().map(|&f| group[f]).collect();
            group.iter_mut().filter(|g| merged.contains(g)).for_each(|g| *g = lowest);
        }
        let mut leaders = group.clone();
        leaders.sort_unstable();
        leaders.dedup();

        let mut joint = Joint {
            factors: Vec::new(),
            members: vec![Member { group: 0, values: 0, stride: 0 }; factors.len()],
        };
        for (number, leader) in leaders.into_iter().enumerate() {
            let members: Vec<usize> = (0..factors.len()).filter(|&f| group[f] == leader).collect();
            let name = members.iter().map(|&f| factors[f].name.as_str()).collect::<Vec<_>>().join(" × ");
            let mut prior = vec![1.0];
            for &f in &members {
                let values = &factors[f].prior;
                if prior.len().saturating_mul(values.len()) > MOST_HYPOTHESES {
                    return Err(format!(
                        "{name} would be one factor, of more than {MOST_HYPOTHESES} hypotheses"
                    ));
                }
                prior = prior.iter().flat_map(|p| values.iter().map(move |v| p * v)).collect();
            }
            let mut stride = prior.len();
            for &f in &members {
                let values = factors[f].prior.len();
                stride /= values;
                joint.members[f] = Member { group: number, values, stride };
            }
            joint.factors.push(Factor { name, prior });
        }
        Ok(joint)
    }

    /// The group that a factor is in.
    pub(super) fn group(&self, factor: usize) -> usize {
        self.members[factor].group
    }

    /// The value that a factor has under a hypothesis of its group.
    pub(super) fn value(&self, factor: usize, hypothesis: usize) -> usize {
        let member = self.members[factor];
        hypothesis / member.stride % member.values
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn factor(name: &str, prior: &[f64]) -> Factor {
        Factor { name: name.into(), prior: prior.to_vec() }
    }

    #[test]
    fn what_is_asked_together_is_joined_and_the_rest_stays_apart() {
        let factors = [
            factor("a", &[0.5, 0.5]),
            factor("b", &[1.0]),
            factor("c", &[0.2, 0.3, 0.5]),
            factor("d", &[1.0]),
        ];
        let joint = Joint::new(&factors, [&[0][..], &[2, 0], &[3]].into_iter()).unwrap();
        let names: Vec<&str> = joint.factors.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["a × c", "b", "d"]);
        assert_eq!(joint.factors[0].prior, [0.1, 0.15, 0.25, 0.1, 0.15, 0.25]);
        assert_eq!([0, 1, 2, 3].map(|f| joint.group(f)), [0, 1, 0, 2]);
        assert_eq!(
            (joint.value(0, 4), joint.value(2, 4), joint.value(0, 2), joint.value(2, 2)),
            (1, 1, 0, 2)
        );

        let chained = Joint::new(&factors, [&[2, 3][..], &[0, 1], &[1, 2]].into_iter()).unwrap();
        assert_eq!(chained.factors.len(), 1);
        let large = [factor("x", &[1e-3; 1000]), factor("y", &[1e-3; 1000]), factor("z", &[0.5; 2])];
        assert!(Joint::new(&large, [&[0, 1, 2][..]].into_iter()).unwrap_err().contains("x × y × z"));
        assert_eq!(Joint::new(&large, [&[0][..], &[1], &[2]].into_iter()).unwrap().factors.len(), 3);
    }
}
