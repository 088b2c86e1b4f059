//! Cases that run under `xfrmd run`: this is the client.

mod descriptors;
mod faults;
mod files;
mod groups;
mod transfer;

use crate::process::{as_nobody, me, succeeds, xfrmd};
use crate::{Case, Need};

/// Runs one case, here and now.
pub(crate) fn run(name: &str, _argument: Option<String>) {
    let (_, _, body) = CASES.iter().find(|case| case.0 == name).unwrap();
    body();
}

/// Runs one case under `xfrmd run`.
pub(crate) fn start(name: &str, need: Need, front: &str) {
    let mut command = xfrmd();
    if matches!(need, Need::Nobody | Need::UserNamespaces) {
        as_nobody(&mut command);
    }
    command
        .args(["run", "--front", front, "--"])
        .arg(me().get_program());
    succeeds(command.args(["client", name]));
}

/// Cases that the supervisor does not pass, for what docs/socket.md says of it: numbers of
/// descriptors, descriptors that leave its range, files, other users' rights and namespaces, signals at
/// short intervals.
pub(crate) const NOT_SUPERVISED: [&str; 12] = [
    "threads_and_signal_handlers",
    "other_users_have_no_rights",
    "capabilities_count_for_others",
    "dup_and_close",
    "sockets_can_be_passed",
    "descriptors_are_the_lowest",
    "reused_descriptors_are_the_hosts",
    "xfrm_stat_and_sysctls",
    "sysctls_need_rights",
    "sysctls_from_a_shell",
    "udp_sockets_do_not_reach_the_host",
    "namespaces_of_user_namespaces",
];

/// Every case.
pub(crate) static CASES: &[Case] = &[
    (
        "a_reply_is_queued_when_send_returns",
        Need::Nothing,
        transfer::reply_is_queued,
    ),
    (
        "write_on_an_unbound_socket",
        Need::Nothing,
        transfer::write_unbound,
    ),
    ("explicit_ports", Need::Nothing, transfer::explicit_ports),
    ("peek_and_trunc", Need::Nothing, transfer::peek_and_trunc),
    (
        "sends_fail_as_linux_lets_them",
        Need::Nothing,
        transfer::send_errors,
    ),
    (
        "vectors_and_batches",
        Need::Nothing,
        transfer::vectors_and_batches,
    ),
    ("large_datagrams", Need::Root, transfer::large_datagrams),
    (
        "options_are_those_of_netlink_xfrm",
        Need::Nothing,
        transfer::options,
    ),
    (
        "dumps_are_pulled",
        Need::Nothing,
        transfer::dumps_are_pulled,
    ),
    ("a_peek_pulls_too", Need::Nothing, transfer::peek_pulls),
    (
        "unread_replies_overrun",
        Need::Nothing,
        transfer::unread_replies_overrun,
    ),
    (
        "threads_and_signal_handlers",
        Need::Nothing,
        transfer::threads_and_signals,
    ),
    (
        "connect_to_the_kernel",
        Need::Nothing,
        transfer::connect_to_kernel,
    ),
    (
        "strangers_are_not_heard",
        Need::Nothing,
        transfer::strangers,
    ),
    (
        "events_come_before_the_ack",
        Need::Nothing,
        groups::events_before_ack,
    ),
    ("memberships", Need::Nothing, groups::memberships),
    (
        "memberships_without_privileges",
        Need::Nobody,
        groups::memberships,
    ),
    (
        "events_without_privileges",
        Need::Nobody,
        groups::events_before_ack,
    ),
    (
        "other_instances_are_not_heard",
        Need::Root,
        groups::other_instances,
    ),
    (
        "an_instance_that_floods_its_members",
        Need::Root,
        groups::flood,
    ),
    (
        "unread_events_overrun",
        Need::Root,
        groups::unread_events_overrun,
    ),
    (
        "unread_events_overrun_without_privileges",
        Need::Nobody,
        groups::unread_events_overrun,
    ),
    (
        "other_users_have_no_rights",
        Need::Root,
        groups::other_users,
    ),
    (
        "capabilities_count_for_others",
        Need::Root,
        groups::dropped_capabilities,
    ),
    (
        "fork_shares_the_socket",
        Need::Nothing,
        descriptors::fork_shares,
    ),
    (
        "exec_keeps_the_socket",
        Need::Nothing,
        descriptors::exec_keeps,
    ),
    ("dup_and_close", Need::Nothing, descriptors::dup_and_close),
    (
        "close_loops_spare_the_connection",
        Need::Nothing,
        descriptors::close_loops,
    ),
    ("sockets_can_be_passed", Need::Nothing, descriptors::passed),
    (
        "descriptors_are_the_lowest",
        Need::Nothing,
        descriptors::lowest,
    ),
    (
        "reused_descriptors_are_the_hosts",
        Need::Nothing,
        descriptors::reused,
    ),
    (
        "poll_and_select",
        Need::Nothing,
        descriptors::poll_and_select,
    ),
    (
        "xfrm_stat_and_sysctls",
        Need::Nothing,
        files::read_and_write,
    ),
    ("sysctls_from_a_shell", Need::Nothing, files::from_a_shell),
    ("sysctls_need_rights", Need::Root, files::need_rights),
    (
        "udp_sockets_do_not_reach_the_host",
        Need::Root,
        files::udp_sockets,
    ),
    (
        "namespaces_are_apart",
        Need::Root,
        files::namespaces_are_apart,
    ),
    (
        "namespaces_of_user_namespaces",
        Need::UserNamespaces,
        files::user_namespaces,
    ),
    ("a_hidden_pathname", Need::Root, files::hidden_pathname),
    ("requests_fail_on_purpose", Need::Nothing, faults::requests),
    ("dumps_break_on_purpose", Need::Nothing, faults::dumps),
    ("events_go_wrong_on_purpose", Need::Nothing, faults::events),
    ("the_daemon_dies_on_purpose", Need::Nothing, faults::crashes),
];
