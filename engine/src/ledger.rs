//! amounts (rest follows)
use serde::{Deserialize, Serialize};
/// vector
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Amount(pub std::collections::BTreeMap<u8, u64>);
