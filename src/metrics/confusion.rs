//! Which options are taken for which.

use serde::{Deserialize, Serialize};

/// Counts of answers by (option, the predictor's most probable option); options are counted from 0, a row each.
///
/// Where answers have different numbers of options, the tables are as large as the largest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Rows are the truth: what the user answered, where known.
    pub truth: Vec<Vec<usize>>,
    /// Rows are the teacher's most probable option; empty for the teacher itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<Vec<usize>>,
}

/// Counts one answer.
pub(super) fn count(table: &mut Vec<Vec<usize>>, row: usize, column: usize, options: usize) {
    if table.len() < options {
        table.iter_mut().for_each(|row| row.resize(options, 0));
        table.resize(options, vec![0; options]);
    }
    table[row][column] += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow() {
        let mut table = Vec::new();
        count(&mut table, 1, 0, 2);
        count(&mut table, 1, 0, 2);
        count(&mut table, 0, 2, 3);
        count(&mut table, 1, 1, 2);
        assert_eq!(table, [[0, 0, 1], [2, 1, 0], [0, 0, 0]]);
    }
}
