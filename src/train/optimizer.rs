//! AdamW with named state in f32, and global-norm clipping.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::config::OptimizerConfig;
use crate::ops::adamw::{self, Moments, Step};

/// First and second moments by parameter name, and the number of updates so far.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    updates: usize,
    first: BTreeMap<String, Tensor>,
    second: BTreeMap<String, Tensor>,
}

/// The global L2 norm of gradients, summed in f64 in the order of their names.
///
/// # Errors
/// If the device fails.
pub fn global_norm(gradients: &BTreeMap<String, Tensor>) -> Result<f64> {
    let squares = gradients.values().map(sum_of_squares).collect::<Result<Vec<_>>>()?;
    if squares.is_empty() {
        return Ok(0.0);
    }
    // Read at once: every reading waits for the device.
    Ok(Tensor::stack(&squares, 0)?.to_vec1::<f64>()?.into_iter().sum::<f64>().sqrt())
}

/// In f64, which Metal does not have: there the host sums.
fn sum_of_squares(gradient: &Tensor) -> Result<Tensor> {
    let gradient = if gradient.device().is_metal() { &gradient.to_device(&Device::Cpu)? } else { gradient };
    Ok(gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?)
}

/// The L2 norm of one gradient.
///
/// # Errors
/// If the device fails.
pub fn norm(gradient: &Tensor) -> Result<f64> {
    Ok(sum_of_squares(gradient)?.to_scalar::<f64>()?.sqrt())
}

impl AdamW {
    /// No updates yet.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { config: config.clone(), updates: 0, first: BTreeMap::new(), second: BTreeMap::new() }
    }

    /// One update of `parameters` with the learning rate `lr`; each gradient is multiplied by `factor` first.
    ///
    /// Decay comes before the step, on every parameter alike, as in torch.
    ///
    /// # Errors
    /// If a parameter has no gradient.
    pub fn update(
        &mut self,
        parameters: &mut BTreeMap<String, Tensor>,
        gradients: &BTreeMap<String, Tensor>,
        factor: f64,
        lr: f64,
    ) -> Result<()> {
        self.updates += 1;
        let OptimizerConfig { betas, eps, weight_decay, .. } = self.config;
        let step = Step { lr, betas, eps, weight_decay, number: self.updates, factor };
        for (name, parameter) in parameters.iter_mut() {
            let gradient = gradients.get(name).with_context(|| format!("{name} has no gradient"))?;
            let zeros = || parameter.zeros_like();
            let first = self.first.remove(name).map_or_else(zeros, Ok)?;
            let second = self.second.remove(name).map_or_else(zeros, Ok)?;
            let old = Moments { parameter: parameter.clone(), first, second };
            let new = adamw::update(&old, &gradient.to_dtype(parameter.dtype())?, &step)?;
            *parameter = new.parameter;
            self.first.insert(name.clone(), new.first);
            self.second.insert(name.clone(), new.second);
        }
        Ok(())
    }

    /// The state as named tensors, `first/…` and `second/…`.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let named = |kind: &'static str, moments: &BTreeMap<String, Tensor>| {
            moments.iter().map(|(name, t)| (format!("{kind}/{name}"), t.clone())).collect::<Vec<_>>()
        };
        named("first", &self.first).into_iter().chain(named("second", &self.second)).collect()
    }

    /// Takes back what [`AdamW::tensors`] gave, for parameters of these shapes.
    ///
    /// # Errors
    /// If a moment is missing or has another shape.
    pub fn restore(
        config: &OptimizerConfig,
        updates: usize,
        tensors: &BTreeMap<String, Tensor>,
        parameters: &BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let mut optimizer = Self { updates, ..Self::new(config) };
        if updates == 0 {
            return Ok(optimizer);
        }
        for (name, parameter) in parameters {
            for (kind, moments) in [("first", &mut optimizer.first), ("second", &mut optimizer.second)] {
                let key = format!("{kind}/{name}");
                let moment = tensors.get(&key).with_context(|| format!("{key} is missing"))?;
                ensure!(moment.shape() == parameter.shape(), "{key} has shape {:?}", moment.shape());
                moments.insert(name.clone(), moment.to_device(parameter.device())?);
            }
        }
        Ok(optimizer)
    }
}
