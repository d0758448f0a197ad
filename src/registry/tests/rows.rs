//! What the client does at each step of the protocol and for each fault, and the tests that show it.
//!
//! The list is a page of the documentation; it can name no test that is not there.

use std::{fmt::Write as _, path::Path};

/// Step or fault, what is done, and the tests.
type Row = (&'static str, &'static str, &'static [&'static str]);

const STEPS: [Row; 31] = [
    (
        "names",
        "What is no registry, repository, tag or digest is never asked for.",
        &[
            "names_that_are_none_are_never_asked_for",
            "a_reference_that_is_neither_tag_nor_digest_is_never_asked_for",
            "a_name_may_have_255_characters_and_a_tag_128",
        ],
    ),
    (
        "manifest GET",
        "Bytes are proven by digest, header and document must agree on the type, 4 MiB at most.",
        &[
            "a_manifest_is_its_bytes",
            "a_registry_that_lies_is_found_out",
            "parameters_of_a_content_type_do_not_matter",
            "a_manifest_without_end_is_not_read_to_its_end",
        ],
    ),
    (
        "manifest HEAD",
        "Without a digest or a size the manifest is read instead.",
        &["a_head_that_says_no_digest_is_followed_by_a_get"],
    ),
    (
        "blob HEAD",
        "The size must be the descriptor's; where none is said, one byte is read; 403 and 405 fall to an upload.",
        &[
            "a_blob_s_size_is_what_head_says",
            "a_size_is_also_known_from_a_read_of_one_byte",
            "a_head_that_is_not_answered_is_no_reason_not_to_send",
        ],
    ),
    (
        "ranged GET",
        "206 with the part that was asked for; 200 is read past what is known.",
        &[
            "a_read_goes_on_where_it_broke",
            "a_read_from_an_offset_reads_past_what_a_registry_without_ranges_sends",
        ],
    ),
    (
        "mount",
        "201 is done, 202 is an upload that is used, anything else is remembered as no mount from there.",
        &[
            "a_mount_costs_one_request",
            "the_upload_that_a_registry_opens_instead_of_a_mount_is_used",
            "a_registry_that_does_not_mount_is_no_error",
            "a_registry_that_refused_one_mount_is_not_asked_for_another",
            "blobs_of_the_same_registry_are_mounted",
            "a_new_tag_of_the_same_registry_is_mounted_without_a_question",
            "an_upload_that_is_opened_for_a_blob_that_is_there_is_closed",
        ],
    ),
    (
        "anonymous mount",
        "Not sent: registries answer it in three ways and it saves nothing here.",
        &["every_registry_takes_an_image_and_its_signature"],
    ),
    (
        "upload open",
        "A Location in any form, its query kept; none is a protocol error.",
        &[
            "a_location_may_be_written_in_every_form",
            "a_location_that_leads_astray_ends_the_upload",
            "an_upload_without_a_location_is_a_protocol_error",
        ],
    ),
    (
        "POST then PUT",
        "Every blob first; after a break the registry is asked what it has.",
        &[
            "a_blob_is_sent_once_and_then_known",
            "an_upload_goes_on_where_the_connection_broke",
            "an_upload_whose_confirmation_was_lost_is_not_sent_again",
        ],
    ),
    (
        "a line that breaks often",
        "2 MiB at a time, each confirmed; where the registry takes no parts, the whole.",
        &[
            "a_line_that_breaks_often_is_given_little_at_a_time",
            "a_line_that_breaks_often_carries_little_at_a_time",
            "a_registry_that_takes_no_part_gets_the_whole",
            "a_refusal_that_is_not_about_the_part_ends_the_upload",
        ],
    ),
    (
        "chunked",
        "Where one request is too large, and where the digest comes last; least and largest pieces are learned.",
        &[
            "content_of_unknown_digest_is_sent_in_pieces",
            "pieces_that_are_too_large_become_smaller",
            "pieces_shrink_and_do_not_grow",
            "a_registry_that_wants_large_pieces_gets_them",
            "a_blob_that_is_too_large_for_one_request_goes_in_pieces",
            "a_registry_that_counts_from_the_piece_s_beginning_is_understood",
            "a_registry_that_has_more_than_was_sent_is_not_believed",
        ],
    ),
    (
        "resume",
        "At the registry's own offset; `0-0`, nonsense and a lost session mean a new session.",
        &[
            "a_range_that_cannot_be_trusted_is_not",
            "an_upload_that_the_registry_forgot_starts_again",
            "pieces_survive",
        ],
    ),
    (
        "close",
        "201, or 204 of old registries; then the size is read back.",
        &["a_registry_that_keeps_less_than_it_confirmed_is_found_out"],
    ),
    (
        "cancel",
        "A session that is given up is deleted; the answer does not matter.",
        &[
            "content_that_is_not_what_it_is_called_never_arrives_whole",
            "an_upload_that_the_registry_forgot_starts_again",
        ],
    ),
    (
        "empty blob",
        "Nothing and `{}` are blobs like others.",
        &[
            "a_blob_is_sent_once_and_then_known",
            "a_small_content_of_unknown_digest_needs_no_piece",
        ],
    ),
    (
        "manifest PUT",
        "The bytes as they are, by digest first, leaves first, tags last.",
        &[
            "a_manifest_is_written_as_it_is",
            "a_manifest_that_is_refused_or_stored_otherwise_is_an_error",
            "an_index_comes_after_its_children_and_tags_come_last",
            "a_first_push_sends_each_blob_once_and_serves_the_same_bytes",
        ],
    ),
    (
        "several tags",
        "With one request where the registry takes them; one by one otherwise.",
        &[
            "several_tags_go_with_one_request_where_that_is_offered",
            "every_registry_takes_an_image_and_its_signature",
        ],
    ),
    (
        "subject",
        "A list that clients keep is added to, one writer at a time, with If-Match where there is an ETag.",
        &[
            "a_list_is_added_to_and_not_written_anew",
            "a_list_that_others_write_keeps_what_they_wrote",
            "writers_of_one_process_take_turns_also_where_there_are_no_entity_tags",
            "a_list_that_was_overwritten_during_the_push_is_mended",
            "something_else_under_the_list_s_tag_is_named_and_left",
        ],
    ),
    (
        "what is there already",
        "A tag that points to the image, its bytes and the manifests below it; every blob where that was asked for.",
        &[
            "an_image_that_its_tag_points_to_costs_two_requests_at_the_target",
            "a_tag_alone_proves_nothing",
            "what_a_registry_lost_is_found_by_a_look_at_the_whole",
            "a_second_push_asks_and_writes_nothing",
        ],
    ),
    (
        "merged index",
        "Our platforms replaced, others kept, dangling attestations dropped; on condition that the tag did not move.",
        &[
            "platforms_of_ours_are_replaced_others_stay_and_nothing_dangles",
            "what_is_no_index_of_our_family_is_left_alone",
            "a_merge_keeps_to_the_limits",
            "merges_at_the_same_time_lose_no_platform",
        ],
    ),
    (
        "cloud identities",
        "The provider's own exchange when the registry first asks, once for each life; never a static secret.",
        &[
            "amazon_s_registry_is_logged_in_to_by_a_role",
            "amazon_s_registry_is_logged_in_to_by_a_pod_identity",
            "the_documentation_s_example_has_its_signature",
            "google_s_registry_is_logged_in_to_by_a_pool",
            "google_s_registry_is_logged_in_to_by_the_machine_and_again_when_that_ends",
            "azure_s_registry_is_logged_in_to_by_a_federated_token",
            "a_login_that_was_given_comes_before_the_cloud_s",
            "a_host_s_name_says_whose_it_is",
        ],
    ),
    (
        "certificates",
        "Roots and a client's certificate for one host and port.",
        &[
            "a_certificate_is_trusted_for_the_registry_that_it_was_given_for",
            "a_registry_that_wants_a_certificate_is_shown_the_one_that_was_given_for_it",
            "a_certificate_is_not_shown_where_another_registry_sends_the_client",
            "a_client_certificate_without_a_key_is_refused_and_not_quoted",
        ],
    ),
    (
        "proxies",
        "The environment's, or one for a registry, its token server and its storage.",
        &[
            "a_registry_its_token_server_and_its_storage_are_asked_through_its_proxy",
            "a_registry_behind_a_proxy_cannot_send_the_client_to_the_addresses_of_the_cloud",
            "a_proxy_that_is_none_is_refused_by_its_registry",
        ],
    ),
    (
        "what crosses the wire",
        "Nothing of a credential to servers that a registry names, by realm, redirect, Location or Link.",
        &["no_byte_of_a_credential_leaves_its_origin"],
    ),
    (
        "referrers",
        "By API or tag, of the index and its children and of referrers; pages on the same origin only.",
        &[
            "referrers_of_an_index_and_of_its_children_arrive_and_are_listed",
            "a_list_that_is_none_is_an_error_and_not_an_empty_list",
            "a_referrer_that_is_about_something_else_is_refused",
            "signatures_under_cosign_s_tag_are_never_lost",
        ],
    ),
    (
        "tag list",
        "By Link; on the same origin, to an end.",
        &[
            "all_pages_of_tags_are_read",
            "a_next_page_elsewhere_is_not_asked_for",
        ],
    ),
    (
        "errors",
        "The status decides, the code refines; 1 KiB without control characters is kept.",
        &[
            "a_status_decides_reason_and_retry",
            "a_registry_s_words_are_cut_and_cleaned",
            "digests_in_an_answer_are_found_wherever_they_stand",
        ],
    ),
    (
        "429 and 503",
        "Retry-After, seconds or date, holds for the origin and for everybody in the process.",
        &[
            "retry_after_is_seconds_or_a_date",
            "an_origin_rests_for_as_long_as_it_said_and_others_do_not",
            "an_origin_that_wants_a_long_rest_is_not_asked_again",
        ],
    ),
    (
        "digests",
        "sha256 and sha512, checked before they touch a path, a URL or a key.",
        &[
            "anything_else_is_refused",
            "the_fault_registry_without_faults_passes_the_official_conformance_suite",
        ],
    ),
    (
        "tokens",
        "One exchange for each scope set and life; several scopes or one; renewed early and when refused.",
        &[
            "one_token_serves_a_push_and_names_its_mount_source",
            "a_server_that_grants_one_scope_is_asked_for_the_target_s",
            "a_token_that_is_good_for_another_scope_only_is_replaced_by_a_narrow_one",
            "many_requests_at_once_fetch_one_token",
            "a_token_is_refreshed_at_four_fifths_of_its_life",
            "an_identity_token_is_exchanged_by_the_oauth_form",
            "a_token_server_without_oauth_is_asked_in_the_old_way",
        ],
    ),
    (
        "realms, redirects, addresses",
        "Credentials stay at their origin; nobody is sent nearer than the registry is.",
        &[
            "credentials_go_to_realms_that_proved_themselves",
            "a_plain_registry_cannot_send_the_password_to_another_realm",
            "a_redirected_read_leaves_the_credential_behind",
            "a_foreign_upload_that_is_allowed_sees_no_credential",
            "redirects_end",
            "an_address_is_as_near_as_it_is",
            "every_spelling_of_an_address_is_that_address",
            "a_name_that_leads_to_this_machine_is_refused_when_it_is_connected_to",
            "a_registry_cannot_send_the_client_to_the_addresses_of_the_cloud",
        ],
    ),
];

const FAULTS: [Row; 18] = [
    (
        "401 once, always",
        "Renewed once; then refused for good.",
        &[
            "a_token_that_ends_early_is_renewed_once_for_each_request",
            "a_registry_that_refuses_every_token_is_not_asked_for_ever",
            "without_credentials_or_with_wrong_ones_the_refusal_is_the_answer",
        ],
    ),
    (
        "403 on mount, on upload",
        "Sent instead; refused for good.",
        &[
            "a_registry_that_does_not_mount_is_no_error",
            "what_does_not_pass_is_reported_at_once",
        ],
    ),
    (
        "404, no such repository",
        "`RepositoryNotFound`.",
        &["what_does_not_pass_is_reported_at_once"],
    ),
    (
        "429, 503 with a long Retry-After",
        "Reported with the time, nothing else is asked there.",
        &["an_origin_that_wants_a_long_rest_is_not_asked_again"],
    ),
    (
        "5xx, resets",
        "Repeated where that is safe, given up after four times.",
        &[
            "what_passes_is_waited_for",
            "a_registry_that_always_fails_is_given_up",
        ],
    ),
    (
        "slow",
        "As long as bytes move there is no end; without any for 90 s there is.",
        &[
            "bytes_that_come_one_by_one_are_waited_for_longer_than_silence",
            "an_exchange_that_moves_may_take_hours",
            "an_exchange_that_does_not_move_ends",
        ],
    ),
    (
        "502 after commit, lost answer",
        "HEAD finds the blob, nothing is sent again.",
        &["an_upload_whose_confirmation_was_lost_is_not_sent_again"],
    ),
    (
        "413, 416 by size",
        "In pieces from then on.",
        &[
            "a_blob_that_is_too_large_for_one_request_goes_in_pieces",
            "pieces_that_are_too_large_become_smaller",
        ],
    ),
    (
        "a token ends in mid-upload",
        "Renewed; the upload goes on.",
        &["an_upload_outlives_its_token"],
    ),
    (
        "an immutable tag",
        "The same digest is success, another is `TagImmutable`.",
        &[
            "an_immutable_tag_of_the_same_digest_is_success",
            "a_registry_s_own_immutability_is_understood",
            "a_tag_that_exists_is_treated_by_policy",
        ],
    ),
    (
        "a tag moved meanwhile",
        "Overwritten, or left and said, by policy.",
        &["a_tag_that_moved_during_the_push_stays_where_it_is"],
    ),
    (
        "HEAD says yes for what is gone",
        "The manifest's refusal overrides it; the blobs are sent.",
        &[
            "blobs_that_a_registry_only_said_it_had_are_sent_after_all",
            "a_mount_that_was_only_said_is_found_out",
        ],
    ),
    (
        "one target of several fails",
        "The others are done; what is common is read once.",
        &[
            "a_target_that_fails_does_not_stop_the_others",
            "a_target_that_breaks_leaves_the_read_to_the_others",
            "a_target_that_does_not_take_its_bytes_keeps_nobody_else",
            "three_targets_cost_one_read",
        ],
    ),
    (
        "pushes at the same time",
        "A shared layer is sent once; fifty images cost what is unique in them.",
        &[
            "pushes_of_one_process_send_a_shared_layer_once",
            "fifty_pushes_of_images_that_share_nine_layers_of_ten_send_what_is_unique_once",
        ],
    ),
    (
        "a target serves something else",
        "`VerificationFailed`.",
        &["a_target_that_serves_something_else_is_found_out"],
    ),
    (
        "a proxy that is down",
        "`RegistryUnavailable`, and the proxy is named.",
        &["a_proxy_that_is_down_is_named"],
    ),
    (
        "all of these before real registries",
        "distribution 3, distribution 2.8 and go-containerregistry's keep what they should, by their own answers.",
        &[
            "every_fault_before_a_real_registry_ends_as_it_should",
            "faults_drawn_by_lot_before_a_real_registry_never_make_a_push_lie",
            "a_real_registry_s_refusal_overrides_a_head_that_lies",
            "a_mount_that_a_real_registry_does_not_make_is_an_upload",
            "a_tag_of_a_real_registry_that_moves_during_the_push_stays",
            "one_real_registry_of_three_that_fails_does_not_stop_the_others",
        ],
    ),
    (
        "no connection, wrong certificate, denied address",
        "`RegistryUnavailable`; `OriginForbidden` for an address.",
        &[
            "a_registry_that_is_not_there_is_unavailable",
            "a_certificate_is_trusted_for_the_registry_that_it_was_given_for",
            "a_registry_cannot_send_the_client_to_the_addresses_of_the_cloud",
        ],
    ),
];

/// Every source file that has tests of the client.
const SOURCES: [&str; 29] = [
    include_str!("auth.rs"),
    include_str!("blobs.rs"),
    include_str!("clouds.rs"),
    include_str!("conformance.rs"),
    include_str!("copies.rs"),
    include_str!("destinations.rs"),
    include_str!("local.rs"),
    include_str!("manifests.rs"),
    include_str!("pieces.rs"),
    include_str!("matrix.rs"),
    include_str!("profiles.rs"),
    include_str!("proxies.rs"),
    include_str!("real.rs"),
    include_str!("referrers.rs"),
    include_str!("sharing.rs"),
    include_str!("trace.rs"),
    include_str!("uploads.rs"),
    include_str!("../addresses.rs"),
    include_str!("../auth.rs"),
    include_str!("../cloud/origins.rs"),
    include_str!("../cloud/signature.rs"),
    include_str!("../copy/merge.rs"),
    include_str!("../error.rs"),
    include_str!("../pace.rs"),
    include_str!("../reference.rs"),
    include_str!("../answer.rs"),
    include_str!("../transport.rs"),
    include_str!("../upload/learned.rs"),
    include_str!("../../image/digest.rs"),
];

fn page() -> String {
    let mut text = String::from(
        "# Registry protocol\n\nWritten by `SLIPWAY_WRITE=1 cargo test --lib rows`; do not edit. Each row names the \
         tests that show it, all of them in `src/registry`.\n",
    );
    for (title, first, rows) in [("Steps", "step", &STEPS[..]), ("Faults", "fault", &FAULTS[..])] {
        write!(
            text,
            "\n## {title}\n\n| {first} | what is done | tests |\n|---|---|---|\n"
        )
        .unwrap();
        for (name, done, tests) in rows {
            let tests: Vec<String> = tests.iter().map(|test| format!("`{test}`")).collect();
            writeln!(text, "| {name} | {done} | {} |", tests.join(", ")).unwrap();
        }
    }
    text
}

#[test]
fn every_row_of_the_protocol_names_tests_that_are_there() {
    let missing: Vec<&str> = STEPS
        .iter()
        .chain(&FAULTS)
        .flat_map(|(_, _, tests)| tests.iter().copied())
        .filter(|test| {
            !SOURCES
                .iter()
                .any(|source| source.contains(&format!("fn {test}(")))
        })
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/registry-protocol.md");
    if std::env::var_os("SLIPWAY_WRITE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page());
}
