"""cluster/aws.yaml as Ray's launcher makes it real, on moto: the network of aws_network.yaml, then the launcher's own
bootstrap.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
REGION = "us-east-1"


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The file with the stack's outputs filled in, as the launcher has made it ready to start nodes from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the launcher writes a key into ~/.ssh
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
            config = filled(outputs())
            config = prepare_config(config)
            validate_config(config)
            yield bootstrap_aws(config)


def outputs() -> dict[str, str]:
    """What the guide's `aws cloudformation deploy` leaves to fill in. moto knows no Instance Connect Endpoint and warns
    of it.
    """
    client = boto3.client("cloudformation", REGION)
    with pytest.warns(UserWarning, match="InstanceConnectEndpoint"):
        client.create_stack(
            StackName="biomedclip",
            TemplateBody=(CLUSTER / "aws_network.yaml").read_text(),
            Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "your-bucket"}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
    [stack] = client.describe_stacks(StackName="biomedclip")["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def filled(values: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    image = boto3.client("ec2", REGION).describe_images()["Images"][0]["ImageId"]
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        profile = values["HeadInstanceProfile" if name == "head" else "WorkerInstanceProfile"]
        assert node["IamInstanceProfile"]["Arn"].partition("/")[2] == profile.partition("/")[2]
        node |= {
            "ImageId": image,
            "IamInstanceProfile": {"Arn": profile},
            "SubnetIds": [values["SubnetIds"]],
            "SecurityGroupIds": [values["SecurityGroupIds"]],
        }
    return copy.deepcopy(config)


def groups_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    ids = {
        group for kind in config["available_node_types"].values() for group in kind["node_config"]["SecurityGroupIds"]
    }
    found: list[dict[str, Any]] = boto3.client("ec2", REGION).describe_security_groups(GroupIds=sorted(ids))[
        "SecurityGroups"
    ]
    return found


def test_no_rule_lets_anybody_in_from_outside(launched: dict[str, Any]) -> None:
    [group] = groups_of(launched)
    assert [rule["IpRanges"] + rule["Ipv6Ranges"] for rule in group["IpPermissions"]] == [[], []]
    everywhere = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    open_rules = [
        (one["GroupName"], rule)
        for one in everywhere
        for rule in one["IpPermissions"]
        if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]
    ]
    assert open_rules == []
    assert not [one for one in everywhere if one["GroupName"].startswith("ray-autoscaler")]  # the launcher made none


def test_the_nodes_reach_each_other_and_ssh_comes_from_the_endpoint_alone(launched: dict[str, Any]) -> None:
    [group] = groups_of(launched)
    among, door = sorted(group["IpPermissions"], key=lambda rule: rule.get("FromPort", -1))
    assert among["IpProtocol"] == "-1"
    assert [pair["GroupId"] for pair in among["UserIdGroupPairs"]] == [group["GroupId"]]
    assert (door["FromPort"], door["ToPort"], len(door["UserIdGroupPairs"])) == (22, 22, 1)


@pytest.fixture(scope="module")
def machines(launched: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One node of each type, started by the launcher's own provider."""
    provider = AWSNodeProvider(launched["provider"], launched["cluster_name"])
    client = boto3.client("ec2", REGION)
    started = {}
    for name, kind in launched["available_node_types"].items():
        tags = {
            TAG_RAY_NODE_KIND: "head" if name == "head" else "worker",
            TAG_RAY_NODE_NAME: f"ray-biomedclip-{name}",
            TAG_RAY_USER_NODE_TYPE: name,
            TAG_RAY_LAUNCH_CONFIG: name,
        }
        [node] = provider.create_node(dict(kind["node_config"]), tags, 1)
        [reservation] = client.describe_instances(InstanceIds=[node])["Reservations"]
        [started[name]] = reservation["Instances"]
    return started


def test_no_machine_has_a_public_address_and_all_have_a_way_out(machines: dict[str, dict[str, Any]]) -> None:
    assert [name for name, machine in machines.items() if machine.get("PublicIpAddress")] == []
    client = boto3.client("ec2", REGION)
    subnets = {machine["SubnetId"] for machine in machines.values()}
    assert len(subnets) == 1  # one zone, so no traffic between zones
    [endpoint] = client.describe_vpc_endpoints()["VpcEndpoints"]
    assert endpoint["ServiceName"] == f"com.amazonaws.{REGION}.s3"
    [table] = client.describe_route_tables(RouteTableIds=endpoint["RouteTableIds"])["RouteTables"]
    ways = {route.get("DestinationCidrBlock"): route for route in table["Routes"]}
    assert ways["0.0.0.0/0"]["NatGatewayId"].startswith("nat-")
    # moto takes a table's association with its subnet, and does not show it
    assert "{SubnetId: !Ref Inside, RouteTableId: !Ref InsideRoutes}" in (CLUSTER / "aws_network.yaml").read_text()


def test_the_metadata_service_answers_version_two_alone(launched: dict[str, Any]) -> None:
    for kind in launched["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}


def test_head_and_workers_have_each_their_own_role_and_a_worker_starts_no_machine(
    machines: dict[str, dict[str, Any]],
) -> None:
    profiles = {name: machine["IamInstanceProfile"]["Arn"].rpartition("/")[2] for name, machine in machines.items()}
    assert profiles.pop("head") == "biomedclip-head"
    assert set(profiles.values()) == {"biomedclip-worker"}
    assert "ec2:RunInstances" in allowed("biomedclip-head")
    assert [action for action in allowed("biomedclip-worker") if action.startswith(("ec2:", "iam:"))] == []
    assert {"s3:GetObject", "s3:PutObject"} <= allowed("biomedclip-worker")


def allowed(role: str) -> set[str]:
    """Actions that a role's own policies and the stack's allow."""
    client = boto3.client("iam")
    documents: list[Any] = [
        client.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in client.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for policy in client.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        if not policy["PolicyArn"].startswith("arn:aws:iam::aws:"):
            version = client.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
            found = client.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)
            documents.append(found["PolicyVersion"]["Document"])
    actions: set[str] = set()
    for document in documents:
        for statement in (yaml.safe_load(document) if isinstance(document, str) else document)["Statement"]:
            given = statement["Action"]
            actions |= {given} if isinstance(given, str) else set(given)
    return actions


def test_each_instance_type_is_sold_on_demand_in_the_zone_and_has_what_ray_is_told(
    launched: dict[str, Any], machines: dict[str, dict[str, Any]]
) -> None:
    client = boto3.client("ec2", REGION)
    for name, kind in launched["available_node_types"].items():
        wanted = machines[name]["InstanceType"]
        [facts] = client.describe_instance_types(InstanceTypes=[wanted])["InstanceTypes"]
        offers = client.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [wanted]}]
        )["InstanceTypeOfferings"]
        assert machines[name]["Placement"]["AvailabilityZone"] in {offer["Location"] for offer in offers}
        assert "capacity-block" not in facts["SupportedUsageClasses"]
        assert "on-demand" in facts["SupportedUsageClasses"]
        if name != "head":
            assert kind["resources"]["CPU"] == facts["VCpuInfo"]["DefaultVCpus"]
            gpus = sum(gpu["Count"] for gpu in facts.get("GpuInfo", {}).get("Gpus", []))
            assert kind["resources"].get("GPU", 0) == gpus


def test_spilled_objects_go_to_a_fast_disk(machines: dict[str, dict[str, Any]], launched: dict[str, Any]) -> None:
    for kind in launched["available_node_types"].values():
        [disk] = kind["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Throughput"] >= 500
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "--object-spilling-directory=/mnt/spill" in launched[commands][-1]
    assert "--volume /mnt/spill:/mnt/spill" in launched["docker"]["run_options"]


class _Silent(AutoscalerEventLogger):
    def __init__(self) -> None:
        pass

    def log_cluster_scheduling_update(self, *args: object, **kwargs: object) -> None:
        pass


@pytest.mark.parametrize(("failed", "chosen"), [({}, "cpu_spot"), ({"cpu_spot": 0.0}, "cpu")])
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_spot_machines_come_first_and_others_where_none_can_be_had(
    name: str, failed: dict[str, float], chosen: str
) -> None:
    """Asked of autoscaler v2's own scheduler, which `ray up` runs."""
    config = yaml.safe_load((CLUSTER / name).read_text())
    kinds = {
        kind: NodeTypeConfig(
            kind,
            0,
            about["max_workers"],
            resources=about["resources"],
            labels=about.get("labels", {}),
            priority=about.get("priority", 0),
        )
        for kind, about in config["available_node_types"].items()
        if kind != "head"
    }
    wanted = [ResourceRequestUtil.make({"CPU": 1}) for _ in range(64)]
    reply = ResourceDemandScheduler(_Silent()).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=kinds,
            resource_requests=ResourceRequestUtil.group_by_count(wanted),
            cloud_resource_availabilities=failed,
            recoverable_resource_availabilities=failed,
        )
    )
    started: Counter[str] = Counter()
    for launch in reply.to_launch:
        started[launch.instance_type] += launch.count
    assert started == {chosen: 2}
