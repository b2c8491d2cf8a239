//! How many pods have to be asked to know what all of them do.

/// z² · variance / margin²: 1.96² · 100 / 25, for 95 % confidence, a standard deviation of 10 and a margin of 5.
const POPULATION_FACTOR: f64 = 15.3664;

/// The number of pods to scrape out of `population`.
#[must_use]
pub fn sample_size(population: usize) -> usize {
    if population <= 3 {
        return population;
    }
    let population = population as f64;
    (population * POPULATION_FACTOR / (population + POPULATION_FACTOR - 1.0)).ceil() as usize
}
