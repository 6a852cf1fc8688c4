//! x
mod ack;
mod client;
mod edit;
mod endpoint;
mod event;
mod http;
mod pages;
mod pull;
mod queue;
mod record;
mod records;
mod replica;
mod session;
mod socket;
mod system;
mod world;

pub use client::{Client, ClientError, ConnectError};
pub use driftline_model::{DeviceId, KindName, Object, OpId, RecordId, Seq, SyncId};
pub use driftline_protocol::{Fault, Item, ItemCode, ItemOp};
pub use edit::{Edit, EditError, FieldsError, fields};
pub use endpoint::{Endpoint, EndpointError};
pub use event::{Acknowledged, DeadLetter, Event};
pub use record::{Body, View};
pub use replica::Replica;
pub use system::{SystemClock, SystemRandom, TcpConnector};
pub use world::{Clock, Connector, Random, World};
