"""The part of Fly's GraphQL schema that flyctl's commands ask for; what it leaves out is refused by name.

Names and nesting as in the queries of superfly/fly-go `resource_*.go` and superfly/flyctl
`gql/genqclient.graphql`, `internal/command/{apps/list,status/machines}.go`, `internal/appconfig/remote.go`.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
scalar JSON
scalar ISO8601DateTime
scalar BigInt
scalar AddOnType

type Query {
  app(name: String, internalId: String): App
  apps(type: String, first: Int, after: String, organizationId: ID, role: String): AppConnection!
  appNameAvailable(name: String!): Boolean!
  canPerformBluegreenDeployment(name: String!): Boolean!
  latestImageDetails(image: String!, flyVersion: String): ImageVersion
  nearestRegion: Region
  organization(id: ID, name: String, slug: String): Organization
  organizations(admin: Boolean): OrganizationConnection!
  platform: Platform!
  viewer: Principal!
}

type Mutation {
  allocateIpAddress(input: AllocateIPAddressInput!): AllocateIPAddressPayload
  createLimitedAccessToken(input: CreateLimitedAccessTokenInput!): CreateLimitedAccessTokenPayload
  createOrganization(input: CreateOrganizationInput!): CreateOrganizationPayload
  deleteApp(appId: ID!): DeleteAppPayload
  deleteLimitedAccessToken(input: DeleteLimitedAccessTokenInput!): DeleteLimitedAccessTokenPayload
  moveApp(input: MoveAppInput!): MoveAppPayload
  releaseIpAddress(input: ReleaseIPAddressInput!): ReleaseIPAddressPayload
}

type App {
  id: ID!
  internalNumericId: Int!
  name: String!
  hostname: String
  appUrl: String
  cnameTarget: String
  deployed: Boolean!
  status: String!
  version: Int!
  platformVersion: String
  network: String
  networkId: Int
  organization: Organization!
  role: AppRole
  currentRelease: Release
  currentReleaseUnprocessed: Release
  releasesUnprocessed(first: Int, after: String): ReleaseConnection!
  config: AppConfig!
  services: [Service!]!
  secrets: [Secret!]!
  ipAddresses: IPAddressConnection!
  sharedIpAddress: String
  egressIpAddresses: EgressIPAddressConnection!
  image(ref: String!): Image
  imageDetails: ImageVersion
  machines: MachineConnection!
  hostIssues: IssueConnection!
  limitedAccessTokens: LimitedAccessTokenConnection!
}

type AppConnection { nodes: [App!]! pageInfo: PageInfo! }
type PageInfo { hasNextPage: Boolean! endCursor: String }
type AppRole { name: String! }
type AppConfig { definition: JSON }
type Secret { name: String! }
type Service { description: String! protocol: String! internalPort: Int! ports: [ServicePort!]! }
type ServicePort { port: Int handlers: [String!]! }

type Organization {
  id: ID!
  internalNumericId: BigInt!
  slug: String!
  rawSlug: String!
  name: String!
  type: String!
  paidPlan: Boolean!
  billable: Boolean!
  billingStatus: String!
  viewerRole: String!
  provisionsBetaExtensions: Boolean!
  addOnSsoLink: String
  remoteBuilderImage: String!
  remoteBuilderApp: App
  limitedAccessTokens: LimitedAccessTokenConnection!
  members: MemberConnection!
  addOns(type: AddOnType): AddOnConnection!
}
type AddOnPlan { displayName: String! description: String }
type AddOn {
  id: ID!
  name: String!
  addOnPlan: AddOnPlan
  privateIp: String
  primaryRegion: String
  readRegions: [String!]
  options: JSON
  metadata: JSON
}
type AddOnConnection { nodes: [AddOn!]! }
type OrganizationConnection { nodes: [Organization!]! }
type MemberConnection { edges: [MemberEdge!]! }
type MemberEdge { cursor: String! node: User! joinedAt: ISO8601DateTime! role: String! }

type Release {
  id: ID!
  version: Int!
  stable: Boolean!
  inProgress: Boolean!
  reason: String!
  description: String!
  status: String!
  deploymentStrategy: String!
  imageRef: String
  configDefinition: JSON
  metadata: JSON
  evaluationId: String
  user: User
  createdAt: ISO8601DateTime!
}
type ReleaseConnection { nodes: [Release!]! }

union Principal = User | Macaroon
type User { id: ID! email: String! name: String enablePaidHobby: Boolean! }
type Macaroon { email: String! }

type IPAddress {
  id: ID!
  address: String!
  type: String!
  region: String
  serviceName: String
  network: Network
  createdAt: ISO8601DateTime!
}
type IPAddressConnection { nodes: [IPAddress!]! }
type Network { name: String! organization: Organization }
type EgressIPAddress {
  id: ID!
  ip: String!
  version: Int!
  region: String!
  updatedAt: ISO8601DateTime!
}
type EgressIPAddressConnection { nodes: [EgressIPAddress!]! }

type Image {
  id: ID!
  digest: String!
  ref: String!
  compressedSize: Int!
  compressedSizeFull: BigInt!
  manifest: JSON
}
type ImageVersion { registry: String! repository: String! tag: String! version: String digest: String! }

type Machine {
  id: ID!
  name: String!
  config: JSON!
  state: String!
  region: String!
  createdAt: ISO8601DateTime!
  app: App!
  ips: MachineIPConnection!
  host: Host!
  egressIpAddresses: EgressIPAddressConnection!
}
type MachineConnection { nodes: [Machine!]! }
type MachineIP { family: String! kind: String! ip: String! maskSize: Int! }
type MachineIPConnection { nodes: [MachineIP!]! }
type Host { id: ID! }

type Issue { internalId: String! message: String createdAt: ISO8601DateTime! updatedAt: ISO8601DateTime! }
type IssueConnection { nodes: [Issue!]! }

type LimitedAccessToken {
  id: ID!
  name: String!
  token: String!
  tokenHeader: String
  expiresAt: ISO8601DateTime!
  revokedAt: ISO8601DateTime
  user: User!
}
type LimitedAccessTokenConnection { nodes: [LimitedAccessToken!]! }

type Platform { requestRegion: String regions: [Region!]! }
type Region {
  name: String!
  code: String!
  latitude: Float!
  longitude: Float!
  gatewayAvailable: Boolean!
  requiresPaidPlan: Boolean!
  deprecated: Boolean!
}

input AllocateIPAddressInput {
  appId: ID!
  type: String!
  region: String
  organizationId: ID
  network: ID
}
type AllocateIPAddressPayload { app: App! ipAddress: IPAddress }
input ReleaseIPAddressInput { appId: ID ipAddressId: ID ip: String }
type ReleaseIPAddressPayload { app: App! clientMutationId: String }
input CreateOrganizationInput { name: String! }
type CreateOrganizationPayload { organization: Organization! }
type DeleteAppPayload { organization: Organization! }
input MoveAppInput { appId: ID! organizationId: ID! }
type MoveAppPayload { app: App! }
input CreateLimitedAccessTokenInput {
  name: String!
  organizationId: ID!
  profile: String!
  profileParams: JSON
  expiry: String
}
type CreateLimitedAccessTokenPayload { limitedAccessToken: LimitedAccessToken! }
input DeleteLimitedAccessTokenInput { id: ID token: String }
type DeleteLimitedAccessTokenPayload { token: String }
"""
