//! Identifiers, clocks, canonical values and limits: the words that every Driftline crate shares.
//!
//! The crate parses and orders; it decides nothing, opens nothing and reads no clock.
//!
//! ```
//! use driftline_model::{Hlc, Object};
//!
//! let hlc: Hlc = "0192f3a1b2c3-0001".parse()?;
//! assert_eq!(hlc.millis(), 0x0192_f3a1_b2c3);
//!
//! let body = Object::from_canonical(r#"{"priority":"high","visits":3}"#.to_owned())?;
//! assert_eq!(body.get("visits"), Some("3"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod epoch;
mod hlc;
mod ids;
mod intents;
mod limits;
mod object;

pub use epoch::{Epoch, EpochError};
pub use hlc::{Hlc, HlcError};
pub use ids::{
    ConflictId, DeviceId, DeviceKey, DeviceNo, IdError, KindName, OpId, RecordId, ScopeName, Seq, SyncId,
    TenantId, TenantNo, UserId,
};
pub use intents::Intents;
pub use limits::{Limits, Rate};
pub use object::{NotCanonical, Object, ObjectBuilder, elements, key_cmp};
