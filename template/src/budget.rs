//! What a rendering may still cost.

use std::cell::Cell;

use crate::MAX_COST;

/// What a step costs, in bytes.
const STEP: usize = 16;

pub(crate) struct Budget(Cell<usize>);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Cell::new(MAX_COST))
    }

    /// Pays for a step.
    pub(crate) fn step(&self) -> Result<(), String> {
        self.spend(STEP)
    }

    /// Pays for `bytes`.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), String> {
        match self.0.get().checked_sub(bytes) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err("the result is too large".to_owned()),
        }
    }
}

/// A text that grows as long as it is paid for.
pub(crate) struct Out<'b> {
    text: String,
    budget: &'b Budget,
}

impl<'b> Out<'b> {
    pub(crate) fn new(budget: &'b Budget) -> Self {
        Self { text: String::new(), budget }
    }

    pub(crate) fn budget(&self) -> &'b Budget {
        self.budget
    }

    pub(crate) fn push(&mut self, text: &str) -> Result<(), String> {
        self.budget.spend(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(crate) fn push_many(&mut self, c: char, count: usize) -> Result<(), String> {
        self.budget.spend(count.saturating_mul(c.len_utf8()))?;
        self.text.extend(std::iter::repeat_n(c, count));
        Ok(())
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}
