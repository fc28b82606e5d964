//! AdamW with named state in f32, and global-norm clipping.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Tensor};

use super::config::OptimizerConfig;

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
    let mut total = 0.0;
    for gradient in gradients.values() {
        total += gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(total.sqrt())
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
        let OptimizerConfig { betas: [beta1, beta2], eps, weight_decay, .. } = self.config;
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        let (correction1, correction2) = (correction(beta1), correction(beta2));
        for (name, parameter) in parameters.iter_mut() {
            let gradient = gradients.get(name).with_context(|| format!("{name} has no gradient"))?;
            let gradient = (gradient * factor)?;
            let zeros = || parameter.zeros_like();
            let m = self.first.remove(name).map_or_else(zeros, Ok)?;
            let v = self.second.remove(name).map_or_else(zeros, Ok)?;
            let m = ((m * beta1)? + (&gradient * (1.0 - beta1))?)?;
            let v = ((v * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = ((v.sqrt()? / correction2.sqrt())? + eps)?;
            let step = ((&m / denominator)? * (lr / correction1))?;
            *parameter = ((&*parameter * (1.0 - lr * weight_decay))? - step)?;
            self.first.insert(name.clone(), m);
            self.second.insert(name.clone(), v);
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
