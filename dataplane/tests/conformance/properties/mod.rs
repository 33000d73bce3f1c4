//! What every port has to keep, whatever is behind it. A property takes the bench as it is after opening; when it
//! returns, the bench is taken down and no chunk of the pool may be missing.

mod lengths;
mod lifetime;
mod offload;
mod order;
mod rings;

use crate::bench::Bench;
use crate::nature::{Down, EmptyPool, Nature};

/// A property.
pub(crate) struct Property {
    /// Its name, in test names.
    pub(crate) name: &'static str,
    /// Its proof; it panics where the port breaks it.
    pub(crate) holds: fn(&mut Bench),
}

/// Those that a backend has to keep: what has no device cannot be down, and where frames come in the sender's memory
/// there are none while there is no memory.
pub(crate) fn of(nature: &Nature) -> impl Iterator<Item = &'static Property> {
    PROPERTIES.iter().filter(|property| match property.name {
        "a_device_that_is_down_takes_nothing_and_loses_nothing" => nature.down != Down::NoDevice,
        "an_empty_pool_loses_nothing_uncounted" => nature.empty_pool != EmptyPool::SendersMemory,
        _ => true,
    })
}

macro_rules! properties {
    ($($file:ident: $($name:ident),* $(,)?;)*) => {
        /// All of them.
        const PROPERTIES: &[Property] =
            &[$($(Property { name: stringify!($name), holds: $file::$name }),*),*];
    };
}

properties! {
    order: order_is_kept_within_a_flow, bursts_of_1_to_the_maximum;
    lengths:
        frames_of_every_length_pass_both_ways,
        tagged_frames_keep_their_tag,
        frames_too_short_or_too_long_to_send_hold_up_no_other,
        runts_are_received_as_they_are,
        jumbo_frames_are_received;
    rings:
        a_full_receive_ring_loses_nothing_uncounted,
        a_full_transmit_ring_leaves_the_rest_to_the_caller,
        an_empty_pool_loses_nothing_uncounted;
    offload:
        partial_checksums_leave_as_they_are,
        partial_checksums_arrive_as_they_are,
        super_frames_leave_as_they_are,
        super_frames_arrive_as_they_are,
        chains_of_any_shape_leave_whole;
    lifetime:
        a_device_that_is_down_takes_nothing_and_loses_nothing,
        a_descriptor_is_readable_while_frames_wait,
        a_port_ends_in_the_midst_of_its_work;
}
