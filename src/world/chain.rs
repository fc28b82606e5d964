//! What coins, dice and Markov chains have in common: distributions of the next symbol, one row a context.
//!
//! A coin has one row; a Markov chain has one for each symbol that may have come before, and its first symbol is
//! uniform. A [`Family`] says in a config where the rows come from.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::usage;
use crate::rng::Stream;

/// Where the rows of a source come from, as a config says it: `{ dirichlet = [1.0, 1.0] }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Family<T> {
    /// One known source.
    Fixed(T),
    /// One of several known sources.
    Mixture {
        /// The sources.
        components: Vec<T>,
        /// How likely each is; equally likely where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weights: Option<Vec<f64>>,
    },
    /// Every row is drawn from the Dirichlet distribution with these parameters (with two symbols: Beta).
    Dirichlet(T),
}

/// A table of contexts × symbols: distributions of the next symbol, or the parameters of a Dirichlet distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    symbols: usize,
    cells: Vec<f64>,
}

impl Rows {
    /// A table from its rows, of equal lengths.
    pub fn new(rows: &[Vec<f64>]) -> Rows {
        Rows { symbols: rows.first().map_or(0, Vec::len), cells: rows.concat() }
    }

    /// How many symbols there are.
    pub fn symbols(&self) -> usize {
        self.symbols
    }

    /// How many contexts there are.
    pub fn contexts(&self) -> usize {
        self.cells.len() / self.symbols
    }

    /// The row of a context.
    pub fn row(&self, context: usize) -> &[f64] {
        &self.cells[context * self.symbols..][..self.symbols]
    }

    /// The context after a symbol; none at the beginning of a chain, where the next symbol is uniform.
    pub fn context_after(&self, previous: Option<usize>) -> Option<usize> {
        if self.contexts() == 1 { Some(0) } else { previous }
    }

    /// The distribution of the symbol after `previous`.
    pub fn after(&self, previous: Option<usize>) -> Vec<f64> {
        match self.context_after(previous) {
            Some(context) => self.row(context).to_vec(),
            None => vec![1.0 / self.symbols as f64; self.symbols],
        }
    }
}

/// Where the rows of a source come from.
#[derive(Clone, Debug, PartialEq)]
pub enum RowsPrior {
    /// Every row is a draw of its own.
    Dirichlet(Rows),
    /// One of finitely many tables.
    Mixture {
        /// The tables.
        components: Vec<Rows>,
        /// Their probabilities.
        weights: Vec<f64>,
    },
}

impl RowsPrior {
    /// Reads a config's family; `rows` lists the rows of a member.
    ///
    /// # Errors
    /// Names `key`, the value, and what is possible.
    pub(super) fn new<T>(
        key: &str,
        family: &Family<T>,
        rows: impl Fn(&T) -> Vec<Vec<f64>>,
    ) -> Result<RowsPrior> {
        let (tables, weights, what): (Vec<Vec<Vec<f64>>>, _, _) = match family {
            Family::Dirichlet(alpha) => {
                let alpha = rows(alpha);
                check_shape(key, &alpha)?;
                match alpha.iter().flatten().find(|a| !(a.is_finite() && **a > 0.0)) {
                    Some(a) => return Err(usage(format!("{key}.dirichlet has {a}, it must be above 0"))),
                    None => return Ok(RowsPrior::Dirichlet(Rows::new(&alpha))),
                }
            }
            Family::Fixed(one) => (vec![rows(one)], None, "fixed"),
            Family::Mixture { components, weights } => {
                (components.iter().map(&rows).collect(), weights.clone(), "mixture.components")
            }
        };
        let Some(first) = tables.first() else {
            return Err(usage(format!("{key}.mixture.components is empty: name at least one")));
        };
        let weights = weights.unwrap_or_else(|| vec![1.0 / tables.len() as f64; tables.len()]);
        if weights.len() != tables.len() {
            return Err(usage(format!(
                "{key}.mixture has {} components but {} weights",
                tables.len(),
                weights.len()
            )));
        }
        for table in &tables {
            check_shape(key, table)?;
            if table.len() != first.len() || table[0].len() != first[0].len() {
                return Err(usage(format!("{key}.{what} differ in their number of symbols")));
            }
            for row in table {
                check_distribution(&format!("{key}.{what}"), row)?;
            }
        }
        check_distribution(&format!("{key}.mixture.weights"), &weights)?;
        let normalised = |row: &Vec<f64>| normalise(row);
        let table = |table: &Vec<Vec<f64>>| Rows::new(&table.iter().map(normalised).collect::<Vec<_>>());
        Ok(RowsPrior::Mixture {
            components: tables.iter().map(table).collect(),
            weights: normalise(&weights),
        })
    }

    /// How many contexts and symbols its tables have.
    pub fn shape(&self) -> (usize, usize) {
        let table = match self {
            RowsPrior::Dirichlet(alpha) => alpha,
            RowsPrior::Mixture { components, .. } => &components[0],
        };
        (table.contexts(), table.symbols())
    }

    /// Draws a source's rows.
    pub fn draw(&self, draws: &mut Stream) -> Rows {
        match self {
            RowsPrior::Dirichlet(alpha) => {
                let row = |context: usize| draws.dirichlet(alpha.row(context));
                Rows::new(&(0..alpha.contexts()).map(row).collect::<Vec<_>>())
            }
            RowsPrior::Mixture { components, weights } => components[draws.categorical(weights)].clone(),
        }
    }
}

/// What the teacher assumes and what the users truly are, which must have the same symbols.
pub(super) fn prior_and_source<T>(
    table: &str,
    prior: &Family<T>,
    source: Option<&Family<T>>,
    rows: impl Fn(&T) -> Vec<Vec<f64>>,
) -> Result<(RowsPrior, RowsPrior)> {
    let prior = RowsPrior::new(&format!("{table}.prior"), prior, &rows)?;
    let source = match source {
        Some(family) => RowsPrior::new(&format!("{table}.source"), family, &rows)?,
        None => prior.clone(),
    };
    let (contexts, symbols) = prior.shape();
    if source.shape() != prior.shape() {
        let (of_source, other) = source.shape();
        return Err(usage(format!(
            "{table}.prior has {contexts} × {symbols} numbers but {table}.source has {of_source} × {other}"
        )));
    }
    if !(2..=super::process::LETTERS.len()).contains(&symbols) {
        return Err(usage(format!("{table}.prior has {symbols} symbols, 2 to 26 are possible")));
    }
    Ok((prior, source))
}

/// Rows of equal length.
fn check_shape(key: &str, rows: &[Vec<f64>]) -> Result<()> {
    let symbols = rows.first().map_or(0, Vec::len);
    if symbols == 0 || rows.iter().any(|row| row.len() != symbols) {
        return Err(usage(format!("{key} must have rows of equal length, not {rows:?}")));
    }
    Ok(())
}

/// Checks that a config's numbers are probabilities that sum to 1.
pub(super) fn check_distribution(what: &str, probs: &[f64]) -> Result<()> {
    let sum: f64 = probs.iter().sum();
    // Written so that NaN fails too.
    if probs.iter().all(|p| *p >= 0.0) && (sum - 1.0).abs() <= 1e-6 {
        return Ok(());
    }
    Err(usage(format!("{what}: {probs:?} must be probabilities that sum to 1 (to six digits), not to {sum}")))
}

/// Takes away what rounding in a config left.
pub(super) fn normalise(probs: &[f64]) -> Vec<f64> {
    let sum: f64 = probs.iter().sum();
    probs.iter().map(|p| p / sum).collect()
}
