//! Free choices: whether what was chosen looks like what may be chosen from.

use statrs::function::gamma::gamma_ur;

/// The probability of a whole run of the lab to call a right choice wrong, whatever it tests.
pub const FALSE_ALARM: f64 = 1e-6;

/// Connections that a choice is tested with.
pub const CONNECTIONS: usize = 3000;

/// Pearson's test of goodness of fit: the probability of counts at least as far from `weights` as these, if
/// each is chosen with its weight's share. 0 when something was chosen that has no weight.
///
/// The distribution is chi-square's in the limit of many counts; with at least five expected of each kind
/// the tail is close enough for levels far above what rounding would make of it.
pub fn p_value(counts: &[u64], weights: &[f64]) -> f64 {
    assert_eq!(counts.len(), weights.len());
    let total: u64 = counts.iter().sum();
    let whole: f64 = weights.iter().sum();
    let mut statistic = 0.0;
    let mut kinds = 0;
    for (&count, &weight) in counts.iter().zip(weights) {
        let expected = total as f64 * weight / whole;
        if expected > 0.0 {
            kinds += 1;
            statistic += (count as f64 - expected).powi(2) / expected;
        } else if count > 0 {
            return 0.0;
        }
    }
    match kinds {
        0 | 1 => 1.0,
        _ if statistic <= 0.0 => 1.0,
        _ => gamma_ur(f64::from(kinds - 1) / 2.0, statistic / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ep_06_values_of_the_tables_of_the_distribution() {
        // The 5 % and 0.1 % points for 1, 4 and 10 degrees of freedom (counts made to give that statistic).
        let close = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 1e-3;
        assert!(close(gamma_ur(0.5, 3.841_459 / 2.0), 0.05));
        assert!(close(gamma_ur(2.0, 18.466_83 / 2.0), 0.001));
        assert!(close(gamma_ur(5.0, 29.588_30 / 2.0), 0.001));
        // 60 to 40 of 100: statistic 4.
        assert!(close(p_value(&[60, 40], &[1.0, 1.0]), 0.045_500));
    }

    #[test]
    fn ep_06_a_bent_choice_is_found_and_a_fair_one_is_not() {
        let alarm = |counts: &[u64]| p_value(counts, &vec![1.0; counts.len()]) < FALSE_ALARM / 200.0;
        assert!(!alarm(&[1010, 975, 1015]));
        assert!(!alarm(&[600, 640, 560, 620, 580]));
        // The chain of 1/3, 1/3, 1/3 instead of 1/3, 1/2, 1.
        assert!(alarm(&[1000, 667, 1333]));
        // A backend that is never chosen.
        assert!(alarm(&[750, 750, 750, 750, 0]));
        assert_eq!(p_value(&[10, 1], &[1.0, 0.0]), 0.0);
    }
}
