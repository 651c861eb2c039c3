from services.identity.principal import ANYBODY, Principal, Right, Role


def holder(*roles: Role, tenant: str = "blue") -> Principal:
    return Principal("key-1", tenant, frozenset(roles))


def test_a_client_sends_requests_and_neither_observes_nor_operates() -> None:
    client = holder(Role.CLIENT)
    assert client.may(Right.GENERATE)
    assert not any(client.may(right) for right in (Right.OBSERVE, Right.OPERATE, Right.MANAGE_KEYS))


def test_roles_add_up() -> None:
    both = holder(Role.CLIENT, Role.OPERATOR)
    assert both.may(Right.GENERATE)
    assert both.may(Right.OBSERVE)
    assert not both.may(Right.MANAGE_KEYS)


def test_an_operator_sends_no_requests() -> None:
    assert not holder(Role.OPERATOR).may(Right.GENERATE)


def test_a_client_owns_what_is_its_tenants() -> None:
    client = holder(Role.CLIENT)
    assert client.owns("blue")
    assert not client.owns("red")


def test_whoever_operates_acts_for_every_tenant() -> None:
    assert holder(Role.OPERATOR).owns("red")
    assert holder(Role.ADMIN).owns("red")


def test_where_nothing_is_checked_anybody_may_do_everything() -> None:
    assert all(ANYBODY.may(right) for right in Right)
    assert ANYBODY.owns("red")
